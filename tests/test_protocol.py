"""Protocols: what is shipped loads, and whatever is wrong with one is said all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from secureattn.approx import FUNCTIONS
from secureattn.errors import InputError, ProtocolError
from secureattn.nn.config import ModelConfig
from secureattn.nn.model import load_model
from secureattn.protocol import ENGINES, Protocol, fitted, load_protocol
from secureattn.resources import find, names

GOOD = """
format = 1
engine = "ckks"
trust = "the client alone holds the key"
source = "somewhere"

[functions]
gelu = { kind = "chebyshev", degree = 15 }

[ckks]
refresh = "client"
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(text)
        return path

    return written


def refused(path: Path) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        load_protocol(path)
    assert "\n" not in str(caught.value)
    assert "own.toml" in str(caught.value)
    return caught.value


# ---- what is shipped --------------------------------------------------------------------------------------------


CONFIGS = [
    "bert-base",
    "bert-large",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "pythia-70m",
    "pythia-70m-power",
    "llama-7b",
]
DECODERS = ["bytes-gpt2", "bytes-gpt2-power", "bytes-llama", "bytes-llama-power"]


def test_what_is_shipped() -> None:
    assert names("protocols") == [
        "accurate-ckks",
        "accurate-mpc",
        "accurate-plaintext",
        "bolt-gelu",
        "crypten",
        "mpcformer",
        "plaintext",
        "power-softmax-ckks",
        "power-softmax-ckks-oneshot",
        "power-softmax-mpc",
        "puma",
        "secformer",
        "shaft",
    ]
    assert names("models") == sorted([*DECODERS, *CONFIGS, "digits-vit", "digits-vit-oneshot", "minilm"])


PAPERS: dict[str, dict[str, str]] = {
    "puma": {"gelu": "puma", "silu": "puma", "exp": "puma", "rsqrt": "spu", "softmax": "softmax_max_shift"},
    "mpcformer": {"gelu": "quad"},
    "secformer": {"gelu": "secformer", "erf": "secformer", "rsqrt": "secformer", "reciprocal": "secformer"},
    "shaft": {"gelu": "shaft", "silu": "shaft", "clip": "compare", "softmax": "softmax_ode"},
    "bolt-gelu": {"gelu": "bolt", "tanh": "bolt", "softmax": "softmax"},
}
"""Protocols with one paper's functions, and what is the paper's own."""


@pytest.mark.parametrize("name", names("protocols"))
def test_shipped_protocols_load(name: str) -> None:
    path = find("protocols", name)
    protocol = load_protocol(path)
    assert protocol.name == name
    assert protocol.engine in ENGINES
    assert protocol.changes_model == (name == "mpcformer")
    assert len(protocol.trust.split()) > 3
    own = {function for function, module in FUNCTIONS.items() if not hasattr(module, "LIKE")}
    needed = {"gelu", "rsqrt", "reciprocal", "relu"} if name in PAPERS else own - {"softplus"}
    assert set(protocol.functions) >= needed  # CrypTen has no softplus
    comment = path.read_text().split("format = 1")[0]
    assert "# Source: " in comment
    assert "# Trust: " in comment


def shipped(name: str) -> Protocol:
    return load_protocol(find("protocols", name))


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_protocol_has_its_functions(name: str) -> None:
    protocol = shipped(name)
    kinds = {function: options["kind"] for function, options in protocol.functions.items()}
    assert {**kinds, "softmax": protocol.softmax}.items() >= PAPERS[name].items()
    assert protocol.engine == "crypten"


@pytest.mark.parametrize("name", ["mpcformer", "secformer"])
def test_protocols_for_another_attention_refuse_softmax(name: str) -> None:
    config = ModelConfig.load(find("models", "digits-vit") / "config.json")
    needed = shipped(name).served(replace(config, attention="softmax")).sites()
    assert set(needed.values()) - set(shipped(name).functions) == {"exp"}
    quad = shipped(name).served(replace(config, attention="quad")).sites()
    assert set(quad.values()) <= set(shipped(name).functions)


def test_shipped_options() -> None:
    assert shipped("power-softmax-ckks").ckks.refresh == "client"
    assert shipped("power-softmax-ckks-oneshot").ckks.refresh == "none"
    for name in names("protocols"):
        if shipped(name).engine == "crypten":
            mpc = shipped(name).mpc
            assert (mpc.parties, mpc.dealer, mpc.weights) == (2, "ttp", "shared")
            assert mpc.truncation == ("local" if name == "crypten" else "exact")
            assert mpc.fractional_bits == (18 if name == "puma" else 16)


# ---- what is wrong ----------------------------------------------------------------------------------------------


def test_the_good_one_loads(write: Write) -> None:
    protocol = load_protocol(write(GOOD))
    assert (protocol.name, protocol.engine, protocol.ckks.scale_bits) == ("own", "ckks", 40)


def test_all_violations_at_once(write: Write) -> None:
    error = refused(
        write("""
format = 2
engine = "seal"
speed = "high"
trust = " "

[functions]
swish = { kind = "chebyshev" }
exp = { kind = "taylor" }
rsqrt = { kind = "newton", steps = 3, iterations = 3 }
reciprocal = "chebyshev"

[ckks]
refresh = "server"
scale_bits = 60
slots = 3

[mpc]
parties = 1
dealer = "nobody"
truncation = "never"
fractional_bits = 60
rounds = 1
""")
    )
    expected = [
        "unknown key 'speed'",
        "format must be 1, the only version this release reads",
        "engine 'seal' is none of plaintext, ckks, crypten",
        "trust must say in words who is trusted",
        "source must say in words where it comes from",
        "section [ckks] belongs to engine 'ckks', not 'seal'",
        "ckks: unknown option 'slots'",
        "section [mpc] belongs to engine 'crypten', not 'seal'",
        "mpc: unknown option 'rounds'",
        "unknown function 'swish', known are ",
        "exp: kind 'taylor' is none of exact, ",
        "rsqrt(newton): unknown option 'iterations', it takes steps, degree",
        'functions.reciprocal must be a table such as { kind = "chebyshev", degree = 15 }',
        'ckks.refresh must be "client" or "none", not \'server\'',
        "ckks.scale_bits must be a whole number from 30 to 50, or two of them, the smaller one first, not 60",
        "mpc.parties must be a whole number from 2 to 16, not 1",
        'mpc.dealer must be "ttp" or "tfp", not \'nobody\'',
        'mpc.truncation must be "exact" or "local", not \'never\'',
        "mpc.fractional_bits must be a whole number from 4 to 28, not 60",
    ]
    for sentence in expected:
        assert any(violation.startswith(sentence) for violation in error.violations), sentence
    assert len(error.violations) == len(expected), error.violations
    assert all(violation in str(error) for violation in error.violations)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('engine = "ckks"', 'engine = "crypten"'), ["section [ckks] belongs to engine 'ckks', not 'crypten'"]),
        (('engine = "ckks"', ""), ["engine None is none of", "section [ckks] belongs to engine 'ckks', not None"]),
        (("format = 1", ""), ["format must be 1"]),
        (("format = 1", 'format = "1"'), ["format must be 1"]),
        (('trust = "the client alone holds the key"', "trust = 3"), ["trust must say in words who is trusted"]),
        (("degree = 15", "degree = 15, colour = 1"), ["gelu(chebyshev): unknown option 'colour'"]),
        ((", degree = 15", ""), ["gelu(chebyshev) needs either a degree or an error"]),
        (("degree = 15", "degree = 15, error = 1e-3"), ["gelu(chebyshev) needs either a degree or an error"]),
        (("degree = 15", "degree = -1"), ["gelu(chebyshev): degree must be a whole number of at least 0, not -1"]),
        (('kind = "chebyshev", degree = 15', "degree = 15"), ["gelu: kind None is none of exact, "]),
        (('kind = "chebyshev", degree = 15', 'kind = "quad"'), ["gelu: another function than the model's"]),
        (
            ('kind = "chebyshev", degree = 15', 'kind = "exact"'),
            ["only the plaintext engine can run the true function"],
        ),
        (('kind = "chebyshev", degree = 15', 'kind = "exact", degree = 3'), ["gelu: exact takes no option 'degree'"]),
        (('refresh = "client"', 'refresh = "none"\nscale_bits = 40.5'), ["ckks.scale_bits must be a whole number"]),
        *(
            (
                ('refresh = "client"', f"scale_bits = {scales}"),
                ["ckks.scale_bits must be a whole number from 30 to 50, or"],
            )
            for scales in ("[44, 36]", "[36, 40, 44]", "[29, 40]", "[40, 51]", "[36, true]")
        ),
        (('refresh = "client"', 'layout = "tiled"'), ['ckks.layout must be "auto", "batch" or "dense", not \'tiled\'']),
        (('refresh = "client"', "refresh = true"), ['ckks.refresh must be "client" or "none", not True']),
    ],
)
def test_one_violation(write: Write, change: tuple[str, str], says: list[str]) -> None:
    path = write(GOOD.replace(*change))
    error = refused(path)
    assert len(error.violations) == len(says), error.violations
    for violation, sentence in zip(error.violations, says, strict=True):
        assert sentence in violation


@pytest.mark.parametrize(
    ("scales", "expected"), [("38", [38]), ("[38]", [38]), ("[38, 40]", [38, 39, 40]), ("[30, 50]", [*range(30, 51)])]
)
def test_scales_to_choose_from(write: Write, scales: str, expected: list[int]) -> None:
    protocol = load_protocol(write(GOOD.replace('refresh = "client"', f"scale_bits = {scales}")))
    assert list(protocol.ckks.scales) == expected


@pytest.mark.parametrize(
    "change",
    [
        ('[ckks]\nrefresh = "client"', "mpc = 3"),
        ('[ckks]\nrefresh = "client"', "mpc = 0"),
        ('[ckks]\nrefresh = "client"', "ckks = 3"),
        ('[ckks]\nrefresh = "client"', 'ckks = "client"'),
        ('[ckks]\nrefresh = "client"', "ckks = [1]"),
        ('[functions]\ngelu = { kind = "chebyshev", degree = 15 }', "functions = 3"),
        ('kind = "chebyshev"', "kind = [1]"),
        ('kind = "chebyshev"', "kind = { a = 1 }"),
        ('engine = "ckks"', 'engine = ["ckks"]'),
        ('refresh = "client"', "refresh = []"),
        ('refresh = "client"', "scale_bits = []"),
        ('refresh = "client"', "scale_bits = 40.0"),
    ],
)
def test_a_value_of_another_type_is_a_violation(write: Write, change: tuple[str, str]) -> None:
    text = GOOD.replace(*change)
    if change[1].startswith(("ckks", "mpc", "functions")):
        text = f"{change[1]}\n{GOOD.replace(change[0], '')}"  # a key of the top, before any table
    assert 1 <= len(refused(write(text)).violations) <= 2


def test_changes_model_must_be_said(write: Write) -> None:
    quad = GOOD.replace('kind = "chebyshev", degree = 15', 'kind = "quad"')
    refused(write(quad.replace("format = 1", "format = 1\nchanges_model = false")))
    refused(write(quad.replace("format = 1", 'format = 1\nchanges_model = "yes"')))
    assert load_protocol(write(quad.replace("format = 1", "format = 1\nchanges_model = true"))).changes_model


def test_exact_is_for_plaintext(write: Write) -> None:
    text = GOOD.split("[ckks]")[0].replace('kind = "chebyshev", degree = 15', 'kind = "exact"')
    assert load_protocol(write(text.replace('"ckks"', '"plaintext"'))).functions["gelu"] == {"kind": "exact"}


def test_local_truncation_is_for_two_parties(write: Write) -> None:
    text = GOOD.split("[ckks]")[0].replace('"ckks"', '"crypten"') + '[mpc]\nparties = 3\ntruncation = "local"\n'
    assert 1 <= len(refused(write(text)).violations) <= 2


def test_a_first_party_that_deals_is_warned_of(write: Write) -> None:
    text = GOOD.split("[ckks]")[0].replace('"ckks"', '"crypten"') + '[mpc]\ndealer = "tfp"\n'
    assert "for development only" in (load_protocol(write(text)).mpc.warning or "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format = ", "Invalid value"),
        ("[functions", "Expected ']'"),
        ("format = 1\nformat = 1\n", "Cannot overwrite a value (at line 2,"),
        ("format = 1\n= 2\n", "at line 2,"),
    ],
)
def test_a_syntax_error_says_where(write: Write, text: str, says: str) -> None:
    assert says in str(refused(write(text)))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b"format = 1\n\xff\xfe")
    refused(path)


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "own.toml")


# ---- precision by output ----------------------------------------------------------------------------------------


SHARES = GOOD.split("[ckks]")[0].replace('"ckks"', '"crypten"').replace("degree = 15", "error = 1e-3")


def test_precision_changes_what_an_error_chooses_and_binary_places_for_its_output_alone(write: Write) -> None:
    text = SHARES.replace("error = 1e-3 }", 'error = 1e-3 }\nrelu = { kind = "compare" }')
    own = load_protocol(write(text + "[precision.next]\nerror = 1e-6\nfractional_bits = 20\n"))
    assert own.precise("vector") == own
    fine = own.precise("next")
    assert fine.functions == {"gelu": {"kind": "chebyshev", "error": 1e-6}, "relu": {"kind": "compare"}}
    assert (own.mpc.fractional_bits, fine.mpc.fractional_bits) == (16, 20)
    assert fine.precise("next") == fine


def test_what_is_left_open_follows_the_models_range(write: Write) -> None:
    model = load_model(find("models", "bytes-llama"))  # its exponentials reach 5200
    for places, integer, wanted in (('"fit"', '"fit"', (24, 13)), ('"fit"', "30", (16, 30)), ("20", '"fit"', (20, 13))):
        bits = f"fractional_bits = {places}\n"
        asked = f"[mpc]\ninteger_bits = {integer}\n"
        for text in (asked + bits, f"{asked}[precision.next]\n{bits}"):
            mpc = fitted(load_protocol(write(SHARES + text)), model).mpc
            assert (mpc.fractional_bits, mpc.integer_bits) == wanted
    served = fitted(load_protocol(find("protocols", "accurate-mpc")), model)
    assert fitted(served, model) == served
    assert served.functions["silu"]["error"] == 1e-6
    encoder = load_model(find("models", "digits-vit"))
    kept = fitted(load_protocol(find("protocols", "accurate-mpc")), encoder)
    assert (kept.mpc.fractional_bits, kept.functions["gelu"]["error"]) == (16, 1e-4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[precision.words]\nerror = 1e-6", "precision.words: the output is none of scores, vector, next"),
        ("[precision.next]\nerrors = 1e-6", "precision.next: unknown option 'errors'"),
        ("[precision.next]\nerror = 0.0", "precision.next: error must be a positive number, not 0.0"),
        ("[precision.next]\nerror = true", "precision.next: error must be a positive number, not True"),
        ("[precision]\nnext = 1e-6", "precision must be sections [precision.OUTPUT]"),
        (
            "[precision.next]\nfractional_bits = 60",
            "precision.next.fractional_bits must be a whole number from 4 to 28",
        ),
        ("[precision.next]\nfractional_bits = 26", "precision.next.a product has twice 26 binary places"),
        (
            '[mpc]\ntruncation = "local"\n[precision.next]\nfractional_bits = "fit"',
            'precision.next.fractional_bits: "fit" fills the ring, which needs truncation = "exact"',
        ),
        ('[mpc]\nparties = "fit"', "mpc.parties must be a whole number from 2 to 16, not 'fit'"),
    ],
)
def test_precision_that_cannot_be_had_is_refused(write: Write, text: str, says: str) -> None:
    (violation,) = refused(write(f"{SHARES}{text}\n")).violations
    assert violation.startswith(says)


# ---- sites by name ----------------------------------------------------------------------------------------------


def test_a_name_stands_for_its_sites_and_a_path_wins(write: Write) -> None:
    text = (
        SHARES + '[sites]\n"square.first" = { kind = "spu" }\n"layer.1/attention/square.first" = { kind = "newton" }\n'
    )
    own = load_protocol(write(text + "[precision.next]\nerror = 1e-6\n")).precise("next")
    assert own.options("layer.0/attention/square.first", "rsqrt") == {"kind": "spu"}
    assert own.options("layer.1/attention/square.first", "rsqrt") == {"kind": "newton"}
    assert own.options("layer.0/attention/square.middle", "rsqrt") is None
    (violation,) = refused(write(SHARES + '[sites]\n"square.frist" = { kind = "spu" }\n')).violations
    assert violation == "sites.square.frist is a site of no attention; those of a model are named by their path"


def test_a_root_that_errs_by_more_than_the_domains_after_it_hold_for_is_refused() -> None:
    model, protocol = load_model(find("models", "bytes-llama")), shipped("accurate-plaintext")
    square = replace(protocol, softmax="softmax_normalise_square", beyond=None)
    assert all((square.realisations(model)[site].error or 0.0) <= 0.1 for site in square.served(model.config).bears())
    worse = replace(square, sites={"square.middle": {"kind": "fourier", "harmonics": 2}})
    with pytest.raises(ProtocolError) as caught:
        worse.realisations(model)
    assert len(caught.value.violations) == model.config.layers
    assert "and the domains after it hold for 0.1; allow less" in caught.value.violations[0]


def test_binary_places_are_for_shares(write: Write) -> None:
    error = refused(write(GOOD + "[precision.next]\nfractional_bits = 20\n"))
    assert error.violations == ("precision.next: fractional_bits belong to engine 'crypten', not 'ckks'",)


def test_in_the_clear_as_on_shares() -> None:
    shares, clear = shipped("accurate-mpc"), shipped("accurate-plaintext")
    for output in ("scores", "vector", "next"):
        assert shares.precise(output).functions == clear.precise(output).functions
    assert (shares.softmax, shares.beyond) == (clear.softmax, clear.beyond)


# ---- finding them -----------------------------------------------------------------------------------------------


def test_find_by_name_and_by_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped_file = find("protocols", "crypten")
    assert shipped_file.name == "crypten.toml"
    assert find("protocols", str(shipped_file)) == shipped_file
    own = write(GOOD)
    assert find("protocols", str(own)) == own
    monkeypatch.chdir(own.parent)
    assert load_protocol(find("protocols", "own.toml")).name == "own"
    assert load_protocol(find("protocols", "./own.toml")).name == "own"
    assert (find("models", "digits-vit") / "config.json").is_file()
    assert find("models", str(find("models", "digits-vit"))) == find("models", "digits-vit")


def test_a_folder_of_the_same_name_does_not_hide_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crypten").mkdir()
    (tmp_path / "digits-vit").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("protocols", "crypten").is_file()
    assert (find("models", "digits-vit") / "config.json").is_file()
    assert find("models", "./digits-vit") == Path("digits-vit")


@pytest.mark.parametrize(("kind", "subject"), [("models", "model"), ("protocols", "protocol")])
@pytest.mark.parametrize("name", ["pums", "", "power-softmax-ckks.toml", "no/such/thing", "../protocols/crypten"])
def test_an_unknown_name_lists_what_there_is(
    kind: str, subject: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find(kind, name)
    assert str(caught.value) == (
        f"no {subject} is called {name!r} and no such path exists; there are {', '.join(names(kind))}"
    )
