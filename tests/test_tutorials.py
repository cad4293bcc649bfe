"""The pages of docs say what is true: their code runs, in order, and prints what they show."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pages
import pytest

from secureattn.backends.ckks.parameters import MAX_MODULUS_BITS, RINGS, chain, most_levels
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.ledger import units

DOCS = pages.ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CODE = [page for page in PAGES if any(b.language in ("python", "sh") for b in pages.blocks(page.read_text()))]
SLOW = {"encrypt-by-files", "own-model", "own-protocol", "server", "ten-lines", "three-parties"}
"""They make keys of a few hundred MB, start several processes or train; what they show is tested in parts, fast, by
test_deploy_files, test_train, test_protocol, test_server, test_readme and test_party.
"""
NEEDS = {
    "ten-lines": ("tenseal", "crypten"),
    "own-protocol": ("crypten",),
    "own-model": ("crypten", "sklearn"),
    "three-parties": ("crypten", "cryptography"),
    "encrypt-by-files": ("tenseal",),
    "server": ("tenseal", "fastapi"),
}


def cases() -> list[object]:
    return [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in CODE]


@pytest.mark.parametrize("page", cases())
def test_a_page_runs(page: Path, tmp_path: Path) -> None:
    for module in NEEDS.get(page.stem, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with pages.ended(tmp_path):
        assert pages.run(page, tmp_path) > 0


def test_every_tutorial_has_code_and_every_page_is_listed() -> None:
    listed = (DOCS / "README.md").read_text()
    assert {page.stem for page in CODE} >= {page.stem for page in (DOCS / "tutorials").glob("*.md")}
    assert SLOW <= {page.stem for page in CODE}
    for page in PAGES:
        assert page.name == "README.md" or f"({page.relative_to(DOCS)})" in listed, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        if file.startswith("https://"):
            continue
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert pages.ROOT in found.parents, target
        heads = {anchor_of(head) for head in re.findall(r"^#+ (.*)$", found.read_text(), re.M)} if anchor else {""}
        assert anchor in heads, target


def anchor_of(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def test_blocks_only_of_kinds_that_are_run_or_shown() -> None:
    for page in PAGES:
        for block in pages.blocks(page.read_text()):
            assert block.language in ("python", "sh", "text", "toml"), f"{page.name}: {block.language!r}"


# ---- figures in tables ------------------------------------------------------------------------------------------


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table under a head, without commas, code marks and bold."""
    text = (DOCS / page).read_text().partition(f"| {head} |")[2].split("\n\n")[0]
    return [[re.sub("[,`*]", "", cell).strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


def test_rings_are_those_that_plans_choose_from() -> None:
    found = {int(ring): cells for ring, *cells in rows("parameters.md", "N")}
    assert found.keys() == MAX_MODULUS_BITS.keys()
    for ring, (bits, levels, slots, size) in found.items():
        assert (int(bits), int(slots)) == (MAX_MODULUS_BITS[ring], ring // 2)
        if ring not in RINGS:
            assert (levels, size) == ("not planned", "")
            continue
        top = chain(ring, most_levels(ring))
        assert (int(levels), size) == (top.levels, units.data(top.ciphertext_bytes(top.levels)))


def test_defaults_on_shares_are_those_of_the_code() -> None:
    found = {name: default.strip('"') for name, default, _ in rows("parameters.md", "option under `[mpc]`")}
    assert found == {name: str(value) for name, value in vars(MpcParameters()).items()}


def test_minilms_keys_are_those_that_were_planned() -> None:
    told = json.loads((pages.ROOT / "benchmarks" / "results" / "text.json").read_text())
    sizes, one = told["parts"]["ckks_plan"]["sizes"], chain(1 << 14, 8).key_bytes()
    assert (sizes["relinearisation_key"], sizes["galois_keys"]) == (one, 9 * one)


# ---- the comparison itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1\nb", "a   1\nb\n", True),
        ("a …\nb", "a 17 s\nb", True),
        ("a\n…\nd", "a\nb\nc\nd", True),
        ("a\n…", "a\nb", True),
        ("a", "a\nb", False),
        ("a …", "b 17 s", False),
        ("a\n…\nd", "a\nb", False),
        ("a.b", "axb", False),
    ],
)
def test_what_is_shown_is_compared(shown: str, printed: str, same: bool) -> None:
    assert pages.matches(shown, printed) is same


def test_a_page_that_fails_or_shows_something_else_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError, match="block 1 failed"):
        pages.run(page, tmp_path)
    page.write_text("```python\nprint(2)\n```\n\n```text compared\n3\n```\n")
    with pytest.raises(AssertionError, match="shows"):
        pages.run(page, tmp_path)
