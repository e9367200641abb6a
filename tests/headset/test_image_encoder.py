"""Images: pixels are those of the stock processor, from every source; what cannot be read is told with its row."""

import subprocess
import sys

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, ViTImageProcessorPil
from transformers.image_utils import load_image

from backbones.errors import HeadsetError
from heads import ImageClassification
from headset.batches import make_batch
from headset.data import TextData
from headset.encoders import RAW
from headset.image_encoder import ImageEncoder

LABELS = ("cat", "dog")


@pytest.fixture
def processor(tiny_models):
    return AutoImageProcessor.from_pretrained(tiny_models["image"])


@pytest.fixture
def folder(tmp_path, picture):
    """Three pictures each of cats and dogs."""
    for index in range(6):
        picture(tmp_path / "animals" / LABELS[index % 2] / f"{index}.png", seed=index)
    return tmp_path / "animals"


def connected(processor, **settings):
    data = TextData(**settings)
    data.connect(processor, {"animal": ImageClassification()}, {})
    return data


def first_batch(processor, **settings):
    data = connected(processor, **settings)
    data.setup("fit")
    return next(iter(data.val_dataloader()))


def pixels(processor, paths):
    return processor([load_image(str(path)) for path in paths], return_tensors="pt")["pixel_values"]


def test_a_folder_for_each_label(processor, folder):
    batch = first_batch(processor, train=str(folder), validation=str(folder))
    paths = sorted(folder.rglob("*.png"))
    assert batch.keys() == {"pixel_values", "meta", "labels"} and batch["meta"]["rows"] == list(range(6))
    assert torch.equal(batch["pixel_values"], pixels(processor, paths))
    assert batch["labels"]["animal"].tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_of_splits(processor, folder, picture):
    for split in ("train", "validation"):
        for label in LABELS:
            picture(folder / "all" / split / label / f"{split}.png", seed=len(split))
    data = connected(processor, train=str(folder / "all"), validation=str(folder / "all"))
    data.setup("fit")
    assert [len(data.examples(split)) for split in ("train", "validation")] == [2, 2]
    assert all("validation" in row["path"] for row in data.examples("validation")[RAW])


def test_tables_of_paths(processor, folder, monkeypatch):
    rows = [(f"{label}/{path.name}", label) for label in LABELS for path in sorted((folder / label).iterdir())]
    (folder / "table.csv").write_text("\n".join(["picture,label", *map(",".join, rows)]))
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *map(",".join, rows)]))
    monkeypatch.chdir("/")  # relative paths are those beside the file
    from_csv = first_batch(
        processor, train=str(folder / "table.csv"), validation=str(folder / "table.csv"), image="picture"
    )
    from_metadata = first_batch(processor, train=str(folder), validation=str(folder))
    for batch in (from_csv, from_metadata):
        assert torch.equal(batch["pixel_values"], pixels(processor, [folder / path for path, _ in rows]))
        assert batch["labels"]["animal"].tolist() == [0, 0, 0, 1, 1, 1]


def test_tables_of_files(processor, folder, tmp_path):
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder))["train"]
    rows.save_to_disk(tmp_path / "saved")
    inside = rows.cast_column("image", datasets.Image(decode=False)).map(
        lambda row: {"image": {"bytes": open(row["image"]["path"], "rb").read(), "path": None}},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))}),
    )
    inside.to_parquet(tmp_path / "inside.parquet")
    for source in (str(tmp_path / "saved"), str(tmp_path / "inside.parquet")):
        batch = first_batch(processor, train=source, validation=source)
        assert torch.equal(batch["pixel_values"], pixels(processor, sorted(folder.rglob("*.png"))))
        assert batch["labels"]["animal"].tolist() == [0, 0, 0, 1, 1, 1]


def test_worker_processes_make_the_same(processor, folder):
    alone, helped = (
        first_batch(processor, train=str(folder), validation=str(folder), num_workers=workers) for workers in (0, 1)
    )
    assert torch.equal(alone["pixel_values"], helped["pixel_values"])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F"])
def test_every_mode_of_pil(processor, tmp_path, picture, mode):
    with PIL.Image.open(picture(tmp_path / "a.png")) as image:
        image = image.convert(mode)
    batch = make_batch(ImageEncoder(processor), [image])
    assert torch.equal(batch["pixel_values"], pixels_of(processor, image.convert("RGB")))


def pixels_of(processor, image):
    return processor(image, return_tensors="pt")["pixel_values"]


def test_16_bits_are_scaled_to_8(processor, tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    PIL.Image.fromarray(values * 256 + 7).save(tmp_path / "deep.png")
    PIL.Image.fromarray(values.astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = (make_batch(ImageEncoder(processor), [tmp_path / f"{name}.png"]) for name in ("deep", "flat"))
    assert torch.equal(deep["pixel_values"], flat["pixel_values"])


def test_images_are_upright(processor, tmp_path, picture):
    with PIL.Image.open(picture(tmp_path / "a.png")) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # lies on its side
        image.save(tmp_path / "turned.png", exif=exif)
        upright = image.rotate(-90, expand=True)
    batch = make_batch(ImageEncoder(processor), [tmp_path / "turned.png"])
    assert torch.equal(batch["pixel_values"], pixels_of(processor, upright))


def test_paths_images_and_arrays_are_the_same(processor, tmp_path, picture):
    path = picture(tmp_path / "a.png")
    with PIL.Image.open(path) as image:
        image.load()
    encoder = ImageEncoder(processor)
    answers = [make_batch(encoder, [one])["pixel_values"] for one in (path, str(path), image, np.asarray(image))]
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), "cannot be read: "),
        (lambda path: path.write_text("This is no image."), "cannot be read: cannot identify image file"),
        (lambda path: path.write_bytes(b""), "cannot be read: "),
        (lambda path: path.unlink(), "there is no file"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_files_are_told_before_training(processor, tmp_path, picture, suffix, damage, message):
    paths = [picture(tmp_path / f"{index}{suffix}", seed=index) for index in range(3)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["image,label", *(f"{path.name},{index % 2}" for index, path in enumerate(paths))]))
    connected(processor, train=str(table)).setup("fit")
    damage(paths[1])  # also after a check that is in the cache
    with pytest.raises(HeadsetError) as caught:
        connected(processor, train=str(table)).setup("fit")
    assert f"train: {table}, row 2: column 'image': " in str(caught.value) and message in str(caught.value)
    assert paths[1].name in str(caught.value)


def test_what_is_no_image_is_told(processor, tmp_path):
    for value, message in ((3, "expected the path of a file, got 3"), (None, "missing (null)")):
        (tmp_path / "a.jsonl").write_text(f'{{"image": {"null" if value is None else value}, "label": "x"}}\n')
        with pytest.raises(HeadsetError) as caught:
            connected(processor, train=str(tmp_path / "a.jsonl")).setup("fit")
        assert message in str(caught.value) and "a.jsonl, line 1" in str(caught.value)
    for wrong, message in (
        (["no.png"], "there is no file no.png"),
        ([3], "expected the path of a file, got 3"),
        ([np.zeros((2, 2, 7))], "the image cannot be read"),
        (np.zeros((4, 4, 3), np.uint8), "takes a list of images, got one ndarray"),
        (PIL.Image.new("L", (4, 4)), "takes a list of images, got one Image"),
    ):
        with pytest.raises(HeadsetError, match=message):
            make_batch(ImageEncoder(processor), wrong)
    with pytest.raises(HeadsetError, match=r"data\.image"):
        (tmp_path / "b.csv").write_text("path,label\na.png,x\n")
        connected(processor, train=str(tmp_path / "b.csv")).setup("fit")


def test_a_processor_that_leaves_sizes_is_told(tmp_path, picture):
    encoder = ImageEncoder(ViTImageProcessorPil(do_resize=False))
    paths = [picture(tmp_path / f"{size}.png", size=(size, size)) for size in (16, 20)]
    with pytest.raises(HeadsetError, match="different sizes"):
        make_batch(encoder, paths)


def test_other_processors_are_told(tokenizer, folder):
    with pytest.raises(HeadsetError, match="The heads read image, and the processor is a BertTokenizer"):
        connected(tokenizer, train=str(folder)).setup("fit")


def test_without_pillow_the_extra_is_named(processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(HeadsetError, match=r"pip install 'headset\[image\]'"):
        make_batch(ImageEncoder(processor), ["a.png"])


def test_fast_processors_load_without_torchvision_and_without_a_word(tiny_models, tmp_path):
    config = (tiny_models["image"] / "preprocessor_config.json").read_text()
    assert '"ViTImageProcessor"' in config
    (tmp_path / "preprocessor_config.json").write_text(config.replace("ViTImageProcessor", "ViTImageProcessorFast"))
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from heads import ImageClassification\nfrom headset.processors import load_processor\n"
        "print(type(load_processor(sys.argv[1], {'a': ImageClassification()})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "ViTImageProcessorPil\n" and not done.stderr
