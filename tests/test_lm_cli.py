"""train, generate and classify on text: their files, and one sentence with exit code 2 for bad input."""

import pytest
import torch
from language import assert_one_sentence, listing, press_ctrl_c, source_text, write_classes

from lstmkern.command import main
from lstmkern.lm import generate

TEXT = source_text(80)
CHARACTERS = ["--model", "char-gru", "--text", "text.txt", "--batch-size", "8", "--hidden", "8", "--epochs", "1"]
SUBWORDS = ["--model", "awd-lstm", "--text", "classes", "--batch-size", "4", "--seq-len", "12", "--subwords", "280"]
SUBWORDS += ["--hidden", "8", "--embedding", "6", "--layers", "2", "--epochs", "1"]


def write(folder):
    """Write a text, two classes of documents, and files that cannot be used."""
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT.replace("x", "y"))
    (folder / "short.txt").write_text("too short a text")
    (folder / "empty.txt").write_text(" \n")
    (folder / "binary.txt").write_bytes(b"\x7fELF\0\0" + bytes(range(256)))
    (folder / "latin.txt").write_bytes("déjà vu ".encode("latin-1") * 500)
    (folder / "same.txt").write_text("aaaa" * 5000)
    (folder / "empty").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"\x89PNG\0")
    write_classes(folder / "classes")


@pytest.fixture
def here(here):
    write(here)
    return here


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished sessions: lm (words), char (characters), awd (subwords), sort (a classifier on awd)."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert main(["train", "--model", "lm4", "--epochs", "1", "--hidden", "8", "--out", "lm"]) == 0
        assert main(["train", *CHARACTERS, "--out", "char"]) == 0
        assert main(["train", *SUBWORDS, "--out", "awd"]) == 0
        assert (
            main(["classify", "--encoder", "awd/encoder.pt", "--text", "classes", "--epochs", "1", "--out", "sort"])
            == 0
        )
        torch.set_num_threads(threads)
    return folder


def refuse(capsys, folder, args, message):
    """The command prints one sentence that matches ``message``, returns 2, and does not change ``folder``."""
    before = listing(folder)
    capsys.readouterr()
    assert main(args) == 2
    assert assert_one_sentence(capsys, message) == ""
    assert listing(folder) == before


def test_files_of_a_session(trained):
    plain = ["checkpoint.pt", "metrics.csv", "metrics.png"]
    for name, files in (("lm", plain), ("char", plain), ("awd", [*plain, "encoder.pt"])):
        assert sorted(path.name for path in (trained / name).iterdir()) == sorted(files)
    assert sorted(path.name for path in (trained / "sort").iterdir()) == ["classifier.pt", "metrics.csv"]
    for path in trained.glob("*/*.pt"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(("name", "prompt"), [("lm", "one . two"), ("char", "def f1("), ("awd", "one and")])
def test_generate_continues_the_prompt(trained, capsys, name, prompt):
    args = ["generate", "--checkpoint", str(trained / name / "checkpoint.pt"), "--prompt", prompt, "--length", "30"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert out.startswith(prompt)
    if name == "char":
        assert len(out) == len(prompt) + 30 + 1
    assert main([*args, "--temperature", "2", "--seed", "5"]) == 0
    assert capsys.readouterr().out != out


def test_generate_prints_every_word_at_once(trained, monkeypatch, capsys):
    """Each word is printed before the model computes the next one."""
    printed, real = [], generate.logits_of
    monkeypatch.setattr(generate, "logits_of", lambda output: printed.append(capsys.readouterr().out) or real(output))
    assert main(["generate", "--checkpoint", str(trained / "lm"), "--prompt", "one . two", "--length", "4"]) == 0
    printed.append(capsys.readouterr().out)
    assert printed[0] == "one . two " and len(printed) == 5
    assert len(" ".join(printed[1:4]).split()) == 3 and all(part.strip() for part in printed[1:])


def test_ctrl_c_in_generate(trained, monkeypatch, capsys):
    press_ctrl_c(monkeypatch, generate, "logits_of", 4)
    assert main(["generate", "--checkpoint", str(trained / "char"), "--prompt", "def", "--length", "9"]) == 130
    out, err = capsys.readouterr()
    assert len(out) == len("def") + 3 + 1 and out.endswith("\n")
    assert err == "interrupted; the text above, 3 of 9 characters, is not saved anywhere\n"


def test_generate_takes_the_directory_of_a_session(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    texts = []
    for path in ("lm", "lm/checkpoint.pt"):
        assert main(["generate", "--checkpoint", path, "--prompt", "one"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    refuse(
        capsys,
        trained,
        ["generate", "--checkpoint", ".", "--prompt", "one"],
        "directory . holds no checkpoint.pt: .*lm",
    )
    refuse(
        capsys, trained, ["generate", "--checkpoint", "sort", "--prompt", "one"], "sort holds no checkpoint.pt: give"
    )


@pytest.mark.parametrize("length", ["0", "100001", "1e3", "many"])
def test_generate_refuses_absurd_lengths(trained, capsys, length):
    args = ["generate", "--checkpoint", str(trained / "lm"), "--prompt", "one", "--length", length]
    refuse(capsys, trained, args, f"'{length}' is not a whole number from 1 to 100,000")


def test_default_temperature_of_the_command(trained, capsys):
    """The default temperature: 0 for models of HUMAN_NUMBERS, 0.8 for others."""
    for name, prompt, temperature in (("lm", "one . two", "0"), ("char", "def f1(", "0.8"), ("awd", "one and", "0.8")):
        args = ["generate", "--checkpoint", str(trained / name), "--prompt", prompt]
        texts = []
        for more in ([], ["--temperature", temperature], ["--temperature", "0.8" if temperature == "0" else "0"]):
            assert main([*args, *more]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != texts[2]


def test_classify_a_text(trained, capsys):
    assert main(["classify", "--checkpoint", str(trained / "sort" / "classifier.pt"), "--prompt", "two and two"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(name for _, name in rows) == ["one", "two"]
    assert sum(float(share.rstrip("%")) for share, _ in rows) == pytest.approx(100, abs=0.2)


def test_a_session_from_an_encoder(here, trained, capsys):
    """The session has the vocabulary and sizes of the encoder."""
    args = ["train", "--encoder", str(trained / "awd" / "encoder.pt"), "--text", "classes", "--batch-size", "4"]
    assert main([*args, "--seq-len", "12", "--epochs", "1", "--out", "out"]) == 0
    one, two = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (trained / "awd", here / "out"))
    assert one["vocab"] == two["vocab"]
    assert [one["config"][k] for k in ("hidden", "embedding")] == [two["config"][k] for k in ("hidden", "embedding")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text", "binary.txt"], "binary.txt is not UTF-8 text"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["--text", "empty.txt"], "empty.txt is empty"),
        (["--text", "short.txt"], "too short: its training part does not fill one batch of 8 sequences"),
        (["--text", "same.txt"], "only one distinct character, 'a'"),
        (["--text", "nowhere"], "no such text: .*nowhere"),
        (["--text", "empty"], "there is no text in .*empty"),
        (["--text", "pictures"], "there is no text in .*pictures"),
        (["--model", "char-four"], "invalid choice: 'char-four'"),
        (["--model", "lm7"], "--text means nothing to model lm7, which reads words"),
        (["--cell", "gru"], "--cell means nothing to model char-gru"),
        (["--data", "classes"], "--data means nothing to model char-gru, which reads characters"),
        (["--limit", "-1"], "'-1' is not a whole number of at least 0"),
        (["--model", "char-stateful", "--compare"], "has no recurrent layer: there is nothing to compare"),
        (["--model", "char-three", "--seq-len", "9"], "--seq-len means nothing to model char-three"),
        (["--encoder", "text.txt"], "text.txt is not a checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_to_a_model_of_characters(here, capsys, args, message):
    refuse(capsys, here, ["train", *CHARACTERS, *args], message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--text", "binary.txt"], "binary.txt is not UTF-8 text"),
        (["--text", "empty.txt"], "empty.txt is empty"),
        (["--text", "short.txt"], "has only one document"),
        (["--text", "text.txt", "--batch-size", "400"], "do not fill one batch of 400 sequences"),
        (["--subwords", "100"], "at least the 256 bytes"),
        (["--hidden", "0"], "'0' is not a whole number of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_to_a_model_of_subwords(here, capsys, args, message):
    refuse(capsys, here, ["train", *SUBWORDS, *args], message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--resume", "char/checkpoint.pt", "--text", "other.txt"], "was trained on another corpus"),
        (["train", "--resume", "char/checkpoint.pt", "--model", "lm7"], "--model lm7 contradicts checkpoint"),
        (["train", "--resume", "char/checkpoint.pt", "--encoder", "awd/encoder.pt"], "together with --resume"),
        (["train", "--resume", "mixed.pt"], "was trained on another corpus"),
        (["generate", "--checkpoint", "mixed.pt", "--prompt", "def"], "is of another model, or damaged"),
        (["generate", "--checkpoint", "awd/encoder.pt", "--prompt", "a"], "not a checkpoint of an lstmkern language"),
        (["generate", "--checkpoint", "char/checkpoint.pt", "--prompt", "é"], "not know the character 'é'"),
        (["generate", "--checkpoint", "char/checkpoint.pt", "--prompt", ""], "the prompt is empty"),
        (["train", "--encoder", "char/checkpoint.pt"], "is of model char-gru: only awd-lstm has an encoder"),
        (["train", "--encoder", "awd/encoder.pt", "--hidden", "9", *SUBWORDS[2:8]], "has other layers or sizes"),
        (["train", "--encoder", "awd/encoder.pt", "--model", "lm7"], "only awd-lstm has an encoder"),
        (["classify"], "to train a classifier give --encoder"),
        (["classify", "--encoder", "lm/checkpoint.pt"], "is of model lm4: only awd-lstm has an encoder"),
        (["classify", "--encoder", "nowhere.pt"], "no such checkpoint: nowhere.pt"),
        (["classify", "--encoder", "awd/encoder.pt", "--text", "text.txt"], "has 0 class.es. of at least two texts"),
        (["classify", "--encoder", "awd/encoder.pt", "--text", "classes", "--classes", "1"], "has 1 class.es."),
        (["classify", "--encoder", "awd/encoder.pt", "--text", "classes", "--out", "char"], "already holds files"),
        (["classify", "--checkpoint", "awd/encoder.pt", "--prompt", "a"], "is not a checkpoint of a text classifier"),
        (["classify", "--prompt", "a"], "give its --checkpoint"),
        (["classify", "--checkpoint", "sort/classifier.pt", "--prompt", ""], "the prompt is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_checkpoints_of_something_else(trained, monkeypatch, capsys, args, message):
    monkeypatch.chdir(trained)
    content = torch.load("char/checkpoint.pt", weights_only=True)
    content["vocab"] = torch.load("awd/checkpoint.pt", weights_only=True)["vocab"]  # the vocabulary of another model
    torch.save(content, "mixed.pt")
    refuse(capsys, trained, args, message)


def test_resume_of_a_text(trained, monkeypatch):
    """A resumed session has the vocabulary of the checkpoint, which its weights belong to."""
    monkeypatch.chdir(trained)
    assert main(["train", "--resume", "awd/checkpoint.pt", "--out", "again"]) == 0
    one, two = (torch.load(name + "/checkpoint.pt", weights_only=True) for name in ("awd", "again"))
    assert one["vocab"] == two["vocab"] and one["fingerprint"] == two["fingerprint"]
