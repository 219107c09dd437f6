"""`cirray init`, and project files in every verb."""

import re
from pathlib import Path

import pytest
from PIL import Image

from cirray.cli.init import InitRun, look, next_steps, write_project
from cirray.cli.main import configured, main
from cirray.cli.verb import verb
from cirray.core.errors import ConfigError, DataError

LONG = {
    "towers": "vision=train vision_training.objective=captions language=train corpus=data",
    "embed": "",
    "train-generator": "generator.settings.tuning=full",
    "mine": "",
    "generate": None,
    "pretrain": "",
    "finetune": "training.objective=finetune reverse_texts=[]",
    "evaluate": "",
    "index": "",
    "serve": None,
}
"""Step of a story on own pictures -> what its command says beside `root` and `data`; None: it has no `data`."""


def pictures(folder, *names):
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * at % 256, 90, 20)).save(folder / name)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with every part of the layout, and the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my"
    pictures(folder, "labelled/a.png", "labelled/b.png", "pool/c.png", "pool/d.png", "gallery/e.png", "gallery/f.png")
    (folder / "triplets.csv").write_text("reference,target,modification\na,b,make it red\nb,a,make it dark\n")
    (folder / "queries.csv").write_text("reference,target,modification\ne,f,make it red\n")
    (folder / "captions.csv").write_text("image,caption\na,a dark thing\n")
    return folder


@pytest.mark.parametrize("step", LONG)
def test_each_step_of_a_project_means_the_long_command_line(step, own, tmp_path):
    said = write_project(InitRun(folder="my", root="run"))
    assert f"cirray {step} project.yaml" in said
    data = [] if LONG[step] is None else [f"data.folder.root={own}"]
    long = ["--root", str(tmp_path / "run"), *data, *(LONG[step] or "").split()]
    assert configured(verb(step), ["project.yaml"]).config == configured(verb(step), long).config


def test_what_a_comment_of_a_project_offers_can_be_taken_over(own):
    write_project(InitRun(folder="my"))
    text = Path("project.yaml").read_text()
    offered = re.sub(r"^( *)# ([a-z_]+: )", r"\1\2", text, flags=re.M)
    assert len(text) - len(offered) >= 2 * 8
    Path("taken.yaml").write_text(offered)
    assert configured(verb("pretrain"), ["taken.yaml"]).config.training.steps == 300
    for step in LONG:
        configured(verb(step), ["taken.yaml"])


def test_the_file_says_what_was_found_and_the_answer_what_comes_next(own, capsys):
    assert main(["init", "my", "root=s3://bucket/run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "project.yaml is written for 6 pictures, 2 triplets, 1 queries, 1 captions. What to type next:"
    assert said[1] == "  cirray towers project.yaml" and said[-1] == "  cirray serve project.yaml"
    text = Path("project.yaml").read_text()
    assert 'root: "s3://bucket/run"' in text and "# triplets: triplets  # 2 rows" in text
    assert main(["config", "finetune", "project.yaml", "--given"]) == 0
    assert "objective: finetune" in capsys.readouterr().out


def test_a_folder_of_pictures_alone_is_searched_and_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "shots", "a.jpg", "b.jpg")
    assert next_steps(look(tmp_path / "shots")) == ["index", "serve"]
    write_project(InitRun(folder="shots"))
    run = configured(verb("index"), ["project.yaml"]).config
    assert (run.images, run.model) == (str(tmp_path / "shots"), "openai/clip-vit-base-patch32")
    assert "triplets: triplets  # not there; a table with the columns" in Path("project.yaml").read_text()


def test_one_folder_for_everything_may_pair_the_pictures_it_searches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "all", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "all" / "triplets.csv").write_text("reference,target,modification\na,b,make it red\n")
    write_project(InitRun(folder="all"))
    run = configured(verb("mine"), ["project.yaml"]).config
    assert run.exclude_parts == () and run.parts == ("pool",)
    text = Path("project.yaml").read_text()
    assert "# vision: DIR" in text and "vision: train" not in text


def test_tables_of_other_names_are_known_by_their_columns(own):
    (own / "triplets.csv").rename(own / "labels.csv")
    (own / "queries.csv").rename(own / "Validation.csv")
    (own / "captions.csv").rename(own / "texts.csv")
    (own / "prices.csv").write_text("image,price\na,3\n")
    found = look(own)
    assert found.tables == {"triplets": "labels.csv", "queries": "Validation.csv", "captions": "texts.csv"}
    assert found.rows == {"triplets": 2, "queries": 1, "captions": 1}
    write_project(InitRun(folder="my"))
    folder = configured(verb("embed"), ["project.yaml"]).config.data.folder
    assert (folder.triplets, folder.queries, folder.captions) == ("labels.csv", "Validation.csv", "texts.csv")


def test_two_tables_that_could_be_meant_are_left_to_the_user(own):
    (own / "triplets.csv").rename(own / "one.csv")
    (own / "two.csv").write_text((own / "one.csv").read_text())
    assert look(own).tables == {}


def test_a_project_file_that_exists_stays_as_it_is(own, capsys):
    Path("project.yaml").write_text("mine")
    assert main(["init", "my"]) == 2
    assert "'project.yaml' exists" in capsys.readouterr().err
    assert Path("project.yaml").read_text() == "mine"
    assert main(["init", "my", "out=other.yaml"]) == 0


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "nowhere' does not exist"),
        (["empty"], "No images found"),
        (["my", "out=project.txt"], "'project.txt'; the project file's name ends in .yaml"),
        (["my", "out=no/such/project.yaml"], "'no/such/project.yaml' cannot be written"),
        (["my", "root=@run"], "'@run'"),
        (["broken"], "triplets.csv', line 2: target image 'zz'"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_sentence_and_nothing_is_left(own, tmp_path, words, said, capsys):
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "broken", "a.png")
    (tmp_path / "broken" / "triplets.csv").write_text("reference,target,modification\na,zz,make it red\n")
    assert main(["init", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
    assert not list(tmp_path.glob("*.yaml"))


def project(text):
    Path("project.yaml").write_text(text)
    return "project.yaml"


@pytest.mark.parametrize(
    "text, said",
    [
        ("rot: a\nsteps: {}", "Unknown key beside 'steps' 'rot'. Did you mean 'root'?"),
        ("steps: {finetun: {}}", "Unknown verb below 'steps' 'finetun'. Did you mean 'finetune'?"),
        ("steps: {finetune: 3}", "steps.finetune holds"),
        ("steps: [finetune]", "'steps' holds"),
        ("steps: {finetune: {trainin: {steps: 3}}}", "trainin"),
    ],
)
def test_a_mistake_in_a_project_file_is_named(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)):
        configured(verb("finetune"), [project(text)])


def test_a_verb_takes_the_shared_fields_that_it_has_and_its_own_section_over_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = project("root: here\ndevice: cuda\nsteps: {finetune: {device: cpu, labels: 7}, pretrain: {labels: 9}}")
    run = configured(verb("finetune"), [file]).config
    assert (run.root, run.device, run.labels) == ("here", "cpu", 7)
    assert configured(verb("generate"), [file]).config.root == "here"
    assert configured(verb("pretrain"), [file]).config.device == "cuda"


def test_a_later_file_and_the_command_line_win_over_a_project_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = project("root: here\nsteps: {finetune: {labels: 7, training: {steps: 11}}}")
    Path("more.yaml").write_text("labels: 8\n")
    run = configured(verb("finetune"), [file, "more.yaml", "training.steps=12"]).config
    assert (run.root, run.labels, run.training.steps) == ("here", 8, 12)


def test_serve_takes_a_project_file_as_such_and_any_other_as_a_serve_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("serve.yaml").write_text("applications: []\n")
    run = configured(verb("serve"), [project("root: here\nsteps: {serve: {port: 9000}}"), "serve.yaml"]).config
    assert (run.root, run.port, run.file) == ("here", 9000, "serve.yaml")


def test_a_bad_row_is_an_error_of_the_data():
    with pytest.raises(DataError):
        look(Path("/nowhere/at/all"))
