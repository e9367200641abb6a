"""Question answering from files to predictions and exports, and the faults of such files."""

import json

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from backbones import HeadsetError
from heads import QuestionAnswering
from headset import Headset, LitHeadset, TextData
from headset.readers import read
from headset.writer import PredictionWriter

CONTEXTS = ["the film was good", "not bad", "very " * 20 + "good film", "the book", "good book, bad film", "a film"]
COLUMNS = {"text": ["question", "context"], "labels": "answers"}


def row(word, context, **answers):
    start = context.find(word)
    found = {"text": [word] if start >= 0 else [], "answer_start": [start] if start >= 0 else []}
    return {"id": f"{word} {context}", "question": f"{word}?", "context": context, "answers": found | answers}


ROWS = [row("film", context) for context in CONTEXTS]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trainer(folder, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **quiet, **settings)


def test_it_learns_measures_predicts_and_goes_out(tmp_path, tiny_bert):
    path, output = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    windows = {"max_length": 20, "stride": 4}
    seed_everything(3)
    module = LitHeadset(str(tiny_bert), {"qa": QuestionAnswering(no_answer=True)}, learning_rate=1e-2)
    run = trainer(tmp_path, max_epochs=15)
    run.fit(module, TextData(train=path, validation=path, batch_size=4, **windows, **COLUMNS))
    data = TextData(validation=path, batch_size=3, **windows, **COLUMNS)
    metrics = run.validate(module, data, verbose=False)[0]
    assert metrics["val/qa/exact_match"] == metrics["val/qa/f1"] == 100.0
    assert {"val/loss", "val/qa/loss"} <= metrics.keys()
    with torch.inference_mode():
        for batch in data.val_dataloader():  # labels that are not prepared are no positions
            assert module.headset(batch)["qa"].logits.shape == (*batch["input_ids"].shape, 2)

    # A row of several windows is one record.
    again = LitHeadset.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    data = TextData(predict=write(tmp_path / "new.jsonl", ROWS), batch_size=3, **windows, **COLUMNS)
    trainer(tmp_path, callbacks=[PredictionWriter(output)]).predict(again, data)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["id"] for record in records] == [row["id"] for row in ROWS]
    for record in records:
        found = record["qa"]
        assert [found["answer"]] == (record["answers"]["text"] or [""])
        assert found["answer"] == record["context"][found["start"] : found["end"]]

    headset = again.headset.eval()
    pairs = [(row["question"], row["context"]) for row in ROWS]
    inputs = [headset.predict(pairs[:1]), headset.predict([list(pair) for pair in pairs[:1]])]
    assert inputs[0] == inputs[1]
    folder = headset.export(str(tmp_path / "export"))["qa"]
    stock, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(*zip(*pairs[:2], strict=True), padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs, ours = stock.eval()(**batch), headset(dict(batch))["qa"].logits
    torch.testing.assert_close(torch.stack([theirs.start_logits, theirs.end_logits], -1), ours, rtol=1e-5, atol=1e-6)
    start, end = theirs.start_logits.argmax(-1), theirs.end_logits.argmax(-1)
    assert tokenizer.decode(batch["input_ids"][0, start[0] : end[0] + 1]) == "film"

    imported = Headset.from_transformers(folder)
    assert imported.states == {"head": "loaded"} and imported.labels == {"head": None}
    back = imported.head("head").scorer.whole(imported.backbone).state_dict()
    assert back.keys() == stock.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in stock.state_dict().items())


def test_a_file_as_squad_publishes_it(tmp_path):
    answers = [{"text": "Oslo", "answer_start": 13}, {"text": "in Oslo", "answer_start": 10}]
    questions = [
        {"id": "1", "question": "Where?", "answers": answers},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": answers[:1]},
    ]
    paragraphs = [{"context": "Ann lives in Oslo.", "qas": questions}]
    path = tmp_path / "squad.json"
    for indent in (None, 2):
        content = {"version": "2.0", "data": [{"title": "Ann", "paragraphs": paragraphs}, {"paragraphs": []}]}
        path.write_text(json.dumps(content, indent=indent))
        shared = {"title": "Ann", "context": "Ann lives in Oslo."}
        assert read(str(path), "train").to_list() == [
            {
                "id": "1",
                **shared,
                "question": "Where?",
                "answers": {"text": ["Oslo", "in Oslo"], "answer_start": [13, 10]},
            },
            {"id": "2", **shared, "question": "When?", "answers": {"text": [], "answer_start": []}},
        ]
    del questions[1]["question"]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    with pytest.raises(HeadsetError, match=r"squad\.json, article 1: not as SQuAD has it.*'question'"):
        read(str(path), "train")
    path.write_text('{"data": [1], "text": "a row"}\n{"data": [2], "text": "another"}\n')
    assert len(read(str(path), "train")) == 2


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            [row("film", "a film", answer_start=[3])],
            {},
            "train.jsonl, line 1: column 'answers': the answer 'film' does",
        ),
        (
            [row("film", "a film"), row("film", "a book")],
            {},
            "line 2: column 'answers': there is no answer.*no_answer: true",
        ),
        ([row("film", "a film") | {"context": None}], {}, "line 1: column 'context': the text is missing"),
        ([row("film", "a film") | {"question": " "}], {}, "line 1: column 'question': the text is blank"),
        ([row("film", "a film") | {"answers": "film"}], {}, "line 1: column 'answers': .*CSV files cannot hold them"),
        ([row("film", "a film")], {"text": "context"}, r"Name both columns: data\.text: \[question, context\]"),
        (
            [row("film", "a film")],
            {"text": ["question", "text"]},
            "there is no column 'text'.*Columns: 'id', 'question'",
        ),
        ([row("film", "a film")], {"labels": "label"}, "there is no column 'label'"),
        ([row("film", "film"), row("x" * 60, "x" * 60)], {}, "train.jsonl, line 2: the question has 61 tokens"),
        ([row("film", "a film")], {"stride": 70}, "Invalid stride: 70"),
        ([row("film", "a film")], {"stride": -1}, "Invalid data.stride: -1"),
    ],
)
def test_faults(tmp_path, tokenizer, rows, settings, message):
    with pytest.raises(HeadsetError, match=message):
        data = TextData(train=write(tmp_path / "train.jsonl", rows), **(COLUMNS | settings))
        data.connect(tokenizer, {"qa": QuestionAnswering()}, {})
        data.setup("fit")
