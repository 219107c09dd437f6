"""Questions to a server: every way in which one can fail costs a retry, a row or one sentence, never an answer."""

import datetime
import ipaddress
import runpy
import ssl
import time
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, GenerationError
from cirray.generators.base import Unwritten
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import CAPTIONERS, CaptionerChoice
from cirray.generators.engines import http
from cirray.generators.engines.base import Question, Shot
from cirray.generators.engines.config import HfEngineConfig, HttpConfig
from cirray.generators.engines.hf import HfEngine
from cirray.generators.engines.http import HttpEngine
from cirray.generators.rewriters.base import Ask, RewriterSetup
from cirray.generators.rewriters.config import REWRITERS, RewriterChoice
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import build_language_model, build_word_tokenizer
from cirray.pipelines.captions.actors import CaptionImages
from cirray.pipelines.rewrites.actors import COLUMNS, RewriteTexts

LMM = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "lmm_stub.py")))
CAPTIONED = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_captioner.py")))
RED = b"\x89PNG\r\n\x1a\n"
ASK = Question(("what is this?", Shot("a/b.jpg", RED)), {"type": "object"})
BUSY = (429, {"error": {"message": "slow down"}}, {"retry-after": "0"})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("CIRRAY_LMM_KEY", raising=False)


def engine(*urls, **fields):
    return HttpEngine(validate(HttpConfig, {"endpoints": urls, "model": "tiny-vl", "tries": 3, **fields}), "cpu")


def fine(text):
    return ""


def test_pictures_words_and_the_schema_arrive_in_order_and_tokens_are_counted():
    with LMM.Stub() as stub:
        replies = engine(stub.url, picture_ids=True, temperature=0.5, max_tokens=9).ask([ASK], fine)
    body = stub.bodies[0]
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "what is this?"},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="},
            "uuid": blake2b(RED, digest_size=16).hexdigest(),
        },
    ]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny-vl", 9, 0.5)
    assert (replies[0].tokens_in, replies[0].tokens_out) == (100, 7)


def test_another_picture_word_or_engine_is_another_question():
    asked = [ASK, Question(("what is this?", Shot("a/b.jpg", RED + b"1"))), Question(("what's this?", ASK.parts[1]))]
    keys = {question.key(engine) for question in asked for engine in ("a", "b")}
    assert len(keys) == 6 and Question(("what is this?", Shot("other name", RED))).key("a") == ASK.key("a")


def test_answers_keep_the_order_of_the_questions_while_many_are_open():
    def late(body, number):
        time.sleep(0.15 if number == 1 else 0.03)
        return body["messages"][0]["content"]

    with LMM.Stub(late) as stub:
        questions = [Question((f"question {number}",)) for number in range(12)]
        replies = engine(stub.url, open_requests=4).ask(questions, fine)
    assert [reply.text for reply in replies] == [f"question {number}" for number in range(12)]
    assert 2 <= stub.most_open <= 4


@pytest.mark.parametrize(
    "bad", [BUSY, (503, "<html>down</html>"), (500, {"detail": "out of memory"}), (200, "no json"),
            (200, {"choices": []}), (200, {"choices": [{"message": {"content": None}}]})],
)  # fmt: skip
def test_a_bad_moment_costs_another_try(bad):
    with LMM.Stub(lambda body, number: bad if number < 3 else "well") as stub:
        replies = engine(stub.url).ask([ASK], lambda text: "" if text else "is empty")
    assert [reply.text for reply in replies] == ["well"] and len(stub.bodies) == 3


def test_a_silent_server_costs_another_try():
    with LMM.Stub(lambda body, number: "hang" if number == 1 else "well") as stub:
        assert engine(stub.url, timeout_s=0.3).ask([ASK], fine)[0].text == "well"


def test_a_dead_server_beside_a_live_one_costs_nothing_but_tries():
    with LMM.Stub() as dead:
        pass
    with LMM.Stub() as live:
        replies = engine(dead.url, live.url).ask([ASK] * 6, fine)
    assert all(reply.text for reply in replies)


def test_a_question_that_always_fails_is_a_row_where_others_were_answered():
    def poison(body, number):
        return (500, {"detail": "boom"}) if "bad" in str(body["messages"]) else "well"

    with LMM.Stub(poison) as stub:
        replies = engine(stub.url).ask([Question(("bad",)), *[Question((f"good {n}",)) for n in range(40)]], fine)
    assert "boom" in replies[0].error and "3 tries" in replies[0].error
    assert all(reply.text == "well" for reply in replies[1:])


def test_a_server_that_dies_ends_the_run_with_what_to_do():
    with LMM.Stub() as stub:
        asking = engine(stub.url)
    with pytest.raises(GenerationError, match=r"cannot be reached .*, 3 times\. What is finished is kept: run again"):
        asking.ask([ASK], fine)


def test_an_answer_with_a_defect_is_asked_for_again_and_then_refused():
    with LMM.Stub(lambda body, number: "nonsense") as stub:
        replies = engine(stub.url).ask([ASK], lambda text: "is nonsense")
    assert replies[0].error == "the answer is nonsense: 'nonsense' (3 tries)" and len(stub.bodies) == 3
    assert replies[0].tokens_out == 21


def test_a_greedy_answer_with_a_defect_is_not_asked_for_in_the_same_way_again():
    def say(body, number):
        return "nonsense" if body["temperature"] == 0 else "well"

    nonsense = lambda text: "is nonsense" if text == "nonsense" else ""  # noqa: E731
    with LMM.Stub(say) as stub:
        assert engine(stub.url).ask([ASK], nonsense)[0].text == "well"
        assert [body["temperature"] for body in stub.bodies] == [0, 0.5]
        engine(stub.url, temperature=0.9).ask([ASK], nonsense)
    assert stub.bodies[-1]["temperature"] == 0.9


def test_an_answer_that_does_not_end_says_that_it_was_cut():
    cut = {"choices": [{"message": {"content": "word " * 2000}, "finish_reason": "length"}]}
    with LMM.Stub(lambda body, number: (200, cut)) as stub:
        told = engine(stub.url).ask([ASK], lambda text: "is nonsense")[0].error
    assert told.endswith("word ', and was cut at max_tokens=256 (3 tries)") and len(told) < 200


def test_a_key_in_the_url_is_refused_without_being_told():
    for url in ("http://me:sesame7@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key=sesame7"):
        with pytest.raises(
            ConfigError, match="at 127.0.0.1 has a name, a password or a query .*CIRRAY_LMM_KEY"
        ) as told:
            engine(url)
        assert "sesame7" not in str(told.value)


def test_a_refused_question_is_a_row_and_all_refused_is_an_error():
    refusal = (400, {"error": {"message": "This model's context is 2048 tokens."}})
    with LMM.Stub(lambda body, number: refusal if number == 2 else "well") as stub:
        asking = engine(stub.url, open_requests=1)
        assert [reply.error[-35:] for reply in asking.ask([ASK] * 3, fine)] == [
            "", "This model's context is 2048 tokens", ""
        ]  # fmt: skip
    with LMM.Stub(lambda body, number: (400, {"error": {"message": "tiny-vl is not a multimodal model"}})) as stub:
        with pytest.raises(GenerationError, match="first 8 questions were all refused: .*not a multimodal model"):
            engine(stub.url, open_requests=1).ask([ASK] * 20, fine)
    assert 8 <= len(stub.bodies) <= 10


def test_a_server_without_schemas_is_asked_without():
    def plain(body, number):
        refusal = (400, {"error": {"message": "response_format json_schema is not supported"}})
        return refusal if "response_format" in body else "well"

    with LMM.Stub(plain) as stub:
        replies = engine(stub.url, open_requests=1).ask([ASK] * 3, fine)
    assert [reply.text for reply in replies] == ["well"] * 3
    assert sum("response_format" in body for body in stub.bodies) == 1


def test_a_key_comes_from_the_environment_and_is_never_told(monkeypatch):
    with LMM.Stub(key="sesame") as stub:
        with pytest.raises(GenerationError, match="a key is needed; put it into CIRRAY_LMM_KEY"):
            engine(stub.url)
        monkeypatch.setenv("CIRRAY_LMM_KEY", "wr0ng-key")
        with pytest.raises(GenerationError, match="the key in CIRRAY_LMM_KEY is not accepted") as told:
            engine(stub.url)
        assert "wr0ng-key" not in str(told.value) and "***" in str(told.value)
        monkeypatch.setenv("CIRRAY_LMM_KEY", "sesame")
        assert engine(stub.url).ask([ASK], fine)[0].text
        monkeypatch.setenv("CIRRAY_LMM_KEY", "two words")
        with pytest.raises(ConfigError, match="CIRRAY_LMM_KEY holds blanks") as told:
            engine(stub.url)
        assert "two words" not in str(told.value)


def test_a_wrong_model_or_no_server_is_one_sentence():
    with LMM.Stub(models=("tiny-vl", "other")) as stub:
        with pytest.raises(GenerationError, match=r"Unknown model 'tiny-v1'.*tiny-vl"):
            engine(stub.url, model="tiny-v1")
    with pytest.raises(GenerationError, match=r"No server answers: .*cannot be reached.*`endpoints`"):
        engine(stub.url)
    with pytest.raises(ConfigError, match="'localhost:8000' is no URL"):
        engine("localhost:8000")
    with pytest.raises(ConfigError, match="certificates .*cannot be read"):
        engine(stub.url, certificates="/nowhere.pem")


def self_signed(folder):
    """Files of a certificate for 127.0.0.1 and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=now.year + 1)
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_that_nobody_vouches_for_is_one_sentence_and_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRRAY_LMM_KEY", "secret-7")
    certificate, key = self_signed(tmp_path)
    with LMM.Stub(lambda body, number: "well", key="secret-7") as stub:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        stub.server.socket = context.wrap_socket(stub.server.socket, server_side=True)
        url = stub.url.replace("http:", "https:")
        with pytest.raises(
            GenerationError, match="not trusted .self-signed certificate.; name its .* `certificates`"
        ) as told:
            engine(url)
        assert "secret-7" not in str(told.value) and str(told.value).count(". ") <= 1
        assert engine(url, certificates=str(certificate)).ask([ASK], fine)[0].text == "well"


def test_a_server_that_drops_pictures_is_refused_and_reads_words():
    with LMM.Stub(lambda body, number: "A has picture B", blind=True) as stub:
        asking = engine(stub.url)
        for _ in range(2):
            with pytest.raises(
                GenerationError, match="does not read pictures: .*'tiny-vl' has 90 tokens with 1 of them"
            ):
                asking.ask([ASK], fine)
        assert asking.ask([Question(("words",))], fine)[0].text and len(stub.bodies) == 1


def test_a_captioner_and_a_rewriter_ask_the_same_engine(tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    server = {"kind": "http", "settings": {"endpoints": [], "model": "tiny-vl", "tries": 2}}

    def say(body, number):
        return "\n a red   picture \nmore" if LMM.pictures_of(body) else 'New caption: "a blue one"'

    with LMM.Stub(say) as stub:
        server["settings"]["endpoints"] = [stub.url]
        chosen = validate(CaptionerChoice, {"kind": "lmm", "settings": {"engine": server, "words": 5, "side": 32}})
        captioner = CAPTIONERS.get("lmm")(chosen.settings, CaptionerSetup())
        assert captioner.caption([Picture("a", str(tmp_path / "a.png"))]) == ["a red picture"]
        rewriter = validate(RewriterChoice, {"kind": "lmm", "settings": {"engine": server, "prompt": "plain/1"}})
        made = REWRITERS.get("lmm")(rewriter.settings, RewriterSetup())
        assert made.rewrite([Ask("a red one", "make it blue")]) == ["a blue one"]
        other = validate(CaptionerChoice, {"kind": "lmm", "settings": {"engine": server, "words": 6, "side": 32}})
        assert CAPTIONERS.get("lmm")(other.settings, CaptionerSetup()).digest != captioner.digest
        stub.answers = lambda body, number: "word " * 2000
        refused = captioner.caption([Picture("a", str(tmp_path / "a.png"))])
        assert refused == made.rewrite([Ask("red", "blue")]) == [Unwritten(refused[0].reason)]
        assert "a text of 2,000 words, more than can be kept" in refused[0].reason
        workers = (
            CaptionImages(chosen, CaptionerSetup(), str(tmp_path)).rows("p", [Picture("a", str(tmp_path / "a.png"))]),
            RewriteTexts(rewriter, RewriterSetup(), str(tmp_path)).rows("p", [{name: "x" for name in COLUMNS}]),
        )
        assert [rejected[0]["reason"] for _, rejected, _ in workers] == [refused[0].reason] * 2
    assert LMM.pictures_of(stub.bodies[0]) == [(32, 21)]
    assert stub.texts()[0] == "<picture>Describe the image in 5 words."
    assert stub.texts()[1].endswith("Caption: a red one\nRequest: make it blue\nNew caption:")


def test_the_twin_in_this_process_answers_as_the_library_does(tmp_path):
    llava = CAPTIONED.save_llava(tmp_path / "llava")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    twin = HfEngine(validate(HfEngineConfig, {"source": llava, "max_tokens": 6}), "cpu")
    asked = [Question((Shot("a", data), " describe the image")), Question((Shot("a", data), " red", Shot("b", data)))]
    replies = twin.ask(asked, fine)
    processor, model = AutoProcessor.from_pretrained(llava), LlavaForConditionalGeneration.from_pretrained(llava).eval()
    prompts = ["USER: <image>  describe the image ASSISTANT:", "USER: <image>  red<image>  ASSISTANT:"]
    for prompt, count, reply in zip(prompts, (1, 2), replies, strict=True):
        images = [Image.new("RGB", (16, 16), "red")] * count
        inputs = processor(images=images, text=prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
        assert reply.text == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        assert reply.tokens_in == inputs["input_ids"].shape[1]


def small_llava(tmp_path, **fields):
    """An engine over a tiny model, with a list of the temperatures at which it has been asked."""
    made = HfEngine(
        validate(HfEngineConfig, {"source": CAPTIONED.save_llava(tmp_path / "llava"), "max_tokens": 6, **fields}), "cpu"
    )
    asked, generate = [], made._model.generate

    def noted(**inputs):
        asked.append((len(inputs["input_ids"]), inputs.get("temperature", 0)))
        return generate(**inputs)

    made._model.generate = noted
    return made, asked


def test_the_twin_asks_for_answers_with_a_defect_again_less_greedily_as_the_others_do(tmp_path):
    twin, asked = small_llava(tmp_path, batch=2)
    questions = [Question((word,)) for word in ("red", "blue", "circle")]
    first = [reply.text for reply in twin.ask(questions, fine)]
    assert asked == [(2, 0), (1, 0)]
    asked.clear()
    replies = twin.ask(questions, lambda text: "is nonsense" if text == first[1] else "")
    assert asked == [(2, 0), (1, 0), (1, 0.5)] and [replies[0].text, replies[2].text] == [first[0], first[2]]
    assert replies[1].text not in ("", first[1]) and replies[1].tokens_out > replies[0].tokens_out
    assert twin.ask(questions, lambda text: "is nonsense" if text == first[1] else "") == replies
    asked.clear()
    told = twin.ask(questions[:1], lambda text: "is nonsense")[0].error
    assert told.startswith("the answer is nonsense: ") and told.endswith(", and was cut at max_tokens=6 (3 tries)")
    assert asked == [(1, 0), (1, 0.5), (1, 0.5)]


def test_a_question_too_long_for_the_twins_context_is_a_row_and_the_others_are_answered(tmp_path):
    twin, asked = small_llava(tmp_path)
    twin._model.config.text_config.max_position_embeddings = 20
    replies = twin.ask([Question(("red",)), Question(("red " * 15,)), Question(("blue",))], fine)
    assert replies[1].error == (
        "the question has 19 tokens, and the answer up to max_tokens=6: "
        "together more than the 20 of the model's context"
    )
    assert replies[0].text and replies[2].text and asked == [(2, 0)]


def test_a_text_model_in_this_process_reads_words_and_says_that_it_sees_nothing(tmp_path):
    language = build_language_model(validate(LanguageModelConfig, {}), build_word_tokenizer(["a red circle"]))
    language.save(tmp_path / "lm")
    twin = HfEngine(validate(HfEngineConfig, {"source": str(tmp_path / "lm"), "max_tokens": 4}), "cpu")
    assert twin.ask([Question(("a red circle",))], fine)[0].tokens_in == 3
    assert "language model without vision" in twin.ask([ASK], fine)[0].error
    with pytest.raises(ArtifactError, match="nowhere"):
        HfEngine(validate(HfEngineConfig, {"source": str(tmp_path / "nowhere")}), "cpu")


def test_a_folder_without_config_is_told_by_what_it_holds(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    told = r"the folder has no config.json \(it holds model.safetensors\)\. Put config.json"
    with pytest.raises(ArtifactError, match=f"No large model could be read .*{told}"):
        HfEngine(validate(HfEngineConfig, {"source": str(tmp_path)}), "cpu")
    choice = validate(CaptionerChoice, {"kind": "hf", "settings": {"source": str(tmp_path)}})
    with pytest.raises(ArtifactError, match=f"No image-to-text model could be read .*{told}"):
        CAPTIONERS.get("hf")(choice.settings, CaptionerSetup())
