import datasets
from datasets import ClassLabel, Dataset, List, Value

from heads.targets import ClassTarget, MultiLabelTarget, NumberTarget, TagTarget

WORDS = {"text": "tokens", "labels": "tags"}
TRAIN = "text,label\nthe film was good,b\na bad book,a\nvery good,b\nthe book,c\nnot good,a\n"


def test_tags(make, batch_of):
    train = "the O\nfilmed B-X\nbooks I-X\n\ngood O\n"
    data = make({"ner": TagTarget("all")}, train=train, **WORDS)
    data.setup("fit")
    assert data.label_sets == {"ner": ("O", "B-X", "I-X")}
    batch = batch_of(data, [0, 1])
    assert batch["meta"]["word_ids"].tolist() == [[-1, 0, 1, 1, 2, 2, -1], [-1, 0, -1, -1, -1, -1, -1]]
    assert batch["labels"]["ner"].tolist() == [[-100, 0, 1, 2, 2, 2, -100], [-100, 0, *[-100] * 5]]


def test_several_heads(make, batch_of):
    heads = {"topic": ClassTarget(), "score": NumberTarget(), "free": None, "tags": MultiLabelTarget()}
    train = "text,label,number,flags\nx,a,-1.5,p|q\ny,b,2,\n"
    data = make(heads, train=train, labels={"topic": "label", "score": "number", "tags": "flags"})
    data.setup("fit")
    assert data.label_sets == {"topic": ("a", "b"), "score": None, "free": None, "tags": ("p", "q")}
    labels = batch_of(data, [0, 1])["labels"]
    assert {name: tensor.tolist() for name, tensor in labels.items()} == {
        "topic": [0, 1],
        "score": [-1.5, 2.0],
        "tags": [[1.0, 1.0], [0.0, 0.0]],
    }


def test_columns_of_zeros_and_ones_and_of_numbers(make, fault, batch_of):
    heads = {"tags": MultiLabelTarget(), "scores": NumberTarget(2)}
    train = "text,z,b,m,n\nx,0,1,1.5,2\ny,0,0,3,4\n"
    data = make(heads, train=train, labels={"tags": ["z", "b"], "scores": ["m", "n"]})
    data.setup("fit")
    assert data.label_sets == {"tags": ("z", "b"), "scores": None}
    labels = batch_of(data, [0, 1])["labels"]
    assert labels["tags"].tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert labels["scores"].tolist() == [[1.5, 2.0], [3.0, 4.0]]
    wrong = make(heads, train=train.replace("x,0", "x,7"), labels={"tags": ["z", "b"], "scores": ["m", "n"]})
    assert "train.csv, row 1: column 'z', 'b': expected 0 or 1 in column 'z', got '7'" in fault(wrong)


def test_labels_of_the_run_come_first(make, fault):
    data = make(known={"topic": ["c", "b", "a"]}, test="text,label\nx,a\n")
    data.setup("test")
    assert next(iter(data.test_dataloader()))["labels"]["topic"].tolist() == [2]
    message = fault(make(known={"topic": ["c", "b"]}, test="text,label\nx,a\n"), "test")
    assert "unknown label 'a'" in message
    assert "Known labels: c, b. The label set comes from the run" in message
    assert "data.train is not set" in fault(make(test="text,label\nx,a\n"), "test")


def test_class_label_columns(make, tmp_path, fault):
    features = datasets.Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "saved")
    data = make(train=str(tmp_path / "saved"), validation="text,label\nx,a\n")
    data.setup("fit")
    assert data.label_sets == {"topic": ("z", "a")}
    assert data.examples("train")["label:topic"][:] == [1, 0]
    assert data.examples("validation")["label:topic"][:] == [1]
    unlabelled = Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    unlabelled.save_to_disk(tmp_path / "test")
    assert "test, row 1: column 'label': expected a label, got nothing" in fault(
        make(train=TRAIN, test=str(tmp_path / "test")), "test"
    )


def test_tags_as_numbers_with_names(make, tmp_path):
    features = datasets.Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X"]))})
    Dataset.from_dict({"tokens": [["a", "film"]], "tags": [[0, 1]]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    data = make({"ner": TagTarget()}, train=str(tmp_path / "a.parquet"), **WORDS)
    data.setup("fit")
    assert data.label_sets == {"ner": ("O", "B-X")}
    assert data.examples("train")[0]["label:ner"] == [-100, 0, 1, -100]


def test_a_run_with_other_labels_than_its_training_data(make, fault):
    message = fault(make(known={"topic": ["good", "bad"]}, train=TRAIN))
    assert "train.csv, row 1: column 'label': unknown label 'b'" in message
    assert "Known labels: good, bad. The label set comes from the run, and " in message
    assert "train.csv has: a, b, c. Give the run these labels, or" in message
    assert "--model.new_heads '[topic]'" in message


def test_labels_that_only_the_share_for_validation_has(make, fault):
    train = "the O\n\n" * 9 + "film B-X\n\n"
    for seed in range(10):  # some of them set the one tag apart
        data = make({"ner": TagTarget()}, train=train, validation=0.3, seed=seed, **WORDS)
        data.setup("fit")
        assert data.label_sets == {"ner": ("O", "B-X")}
    several = "text,label\n" + "x,p\n" * 8 + "y,p|q\n"
    for seed in range(10):
        data = make({"tags": MultiLabelTarget()}, train=several, validation=0.3, seed=seed)
        data.setup("validate")
        assert data.label_sets == {"tags": ("p", "q")}


def test_faults_of_the_share_name_the_setting_that_has_the_file(make, fault):
    train = "text,label\nx,a\ny,b\nz,\n"
    assert fault(make(train=train, validation=0.4), "validate").startswith("train: ")
    assert "data.train is not set" in fault(make(validation=0.4), "validate")
