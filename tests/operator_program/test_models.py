"""Disk models by expression and by URL: what becomes a table, what is refused, what stays."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.inventory import DiskModel
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns.diskio.models import compile_ratios
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers.disk_models import ModelsHandler
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.model_expressions import ExpressionError, tabulate
from berthmaster_operator.model_fetching import FetchError, ModelFetcher, read_origin
from berthmaster_operator.model_loading import KEY, ModelLoader
from berthmaster_operator.sightings import ModelsSeen
from operator_program.stores import Notes
from operator_program.worlds import DEVICE, World, make_device
from support.model_site import ModelSite, serve_models

TABLE = '{"readRatio": {"4k": 6, "32k": 1}, "writeRatio": {"4k": 5}}'
OTHER_TABLE = "readRatio: {512: 3}\nwriteRatio: {512: 4}\n"
NAMES: dict[str, Any] = {"vendor": "Intel", "model": "P4510"}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ModelSite]:
    async with serve_models(tmp_path) as running:
        yield running


@pytest.fixture
async def fetcher(site: ModelSite) -> AsyncIterator[ModelFetcher]:
    made = ModelFetcher([site.origin], ca_file=site.ca_file, timeout_s=2.0, max_bytes=2048)
    yield made
    await made.close()


# Expressions.


async def test_expression_becomes_a_table_per_direction() -> None:
    found = await tabulate('direction == "read" ? 32768.0 / double(blockSize) : 3.0')

    assert found.read_ratio == {
        "512": "64", "1k": "32", "4k": "8", "8k": "4", "16k": "2", "32k": "1",
    }  # fmt: skip
    assert set(found.write_ratio.values()) == {"3"}
    assert compile_ratios(found)[0]["512"] == 64


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("blockSize >", "Syntax error"),
        ("ratio(blockSize)", "undeclared reference to 'ratio'"),
        ("32768.0 / blockSize", "no matching overload"),
        ('"fast"', "gives STRING, expected a number"),
        ("blockSize > 4096", "gives BOOL, expected a number"),
        ('dyn("fast")', "expected a number"),
        ("1 / 0", 'direction "read": divide by zero'),
        ("1.0 / 0.0", "gives inf, expected a ratio"),
        ("0.0 / 0.0", "gives nan, expected a ratio"),
        ("blockSize - 4096", "blockSize 512"),
        ("-1", "gives -1, expected a ratio in 0.001..1000000"),
        ("0", "gives 0, expected a ratio"),
        ("9223372036854775807 + blockSize", "overflow"),
        ("1" + " " * 2000, "characters, at most 1024"),
        ("[1,2,3,4,5,6,7,8].map(a," * 8 + "1" + ")" * 8, "expression: "),
        ("[1,2,3,4,5,6,7,8].all(a," * 8 + "true" + ") ? 1 : 2" + ")" * 7, "expression"),
        ("[1,2,3,4,5,6,7,8].exists(a," * 8 + "false" + ")" * 8 + " ? 1 : 2", "budget exceeded"),
        ("(" * 200 + "1" + ")" * 200, "recursion"),
        ("1" + "+1" * 400, "recursion"),
    ],
)
async def test_expression_without_a_table_says_why(expression: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=r"^expression") as caught:
        await tabulate(expression)

    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(deadline=2000, max_examples=200)
@given(
    st.text(
        st.sampled_from('blockSize direction "read"?:()[]{}.,<=>!&|+-*/%0123456789e_\'\\'),
        max_size=60,
    )
)
async def test_no_text_gets_past_its_bounds(expression: str) -> None:
    found = None
    with contextlib.suppress(ExpressionError):
        found = await tabulate(expression)
    for ratios in compile_ratios(found or DiskModel()):
        assert all(0 < ratio <= 1_000_000 for ratio in ratios.values())


# URLs.


@pytest.mark.parametrize("body", [TABLE, OTHER_TABLE], ids=["json", "yaml"])
async def test_table_is_fetched(site: ModelSite, fetcher: ModelFetcher, body: str) -> None:
    url, sha256 = site.put("/model", body)

    source = await fetcher.fetch(url, sha256)

    assert source.tables is not None
    assert compile_ratios(source.tables)[0]["32k"] == (1 if body == TABLE else 3)


async def test_redirect_is_followed_where_it_is_allowed(
    site: ModelSite, fetcher: ModelFetcher
) -> None:
    _, sha256 = site.put("/model", '{"expression": "2"}')
    site.redirects = {"/a": "/model", "/b": "https://127.0.0.2/", "/c": "/c", "/d": "//["}

    assert (await fetcher.fetch(f"{site.origin}/a", sha256)).expression == "2"
    with pytest.raises(FetchError, match=r"https://127\.0\.0\.2 is not among the origins"):
        await fetcher.fetch(f"{site.origin}/b", sha256)
    with pytest.raises(FetchError, match="more than 3 redirects"):
        await fetcher.fetch(f"{site.origin}/c", sha256)
    assert site.asked.count("/c") == 4
    with pytest.raises(FetchError, match="cannot be fetched: Invalid IPv6 URL"):
        await fetcher.fetch(f"{site.origin}/d", sha256)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"x" * 3000, "gives more than 2048 bytes"),
        (b"\xff\xfe", "gives no text"),
        ("{", "neither JSON nor YAML"),
        ("- 1", "expected an object, found list"),
        ("{}", "says no model"),
        ("a: &a [1]\nb: *a", "neither JSON nor YAML"),
        ("!!python/object/apply:os.system [id]", "neither JSON nor YAML"),
        ("[" * 2000, "is no model"),
        ('{"readRatio": {"7k": 1}}', 'readRatio: unknown block size "7k"'),
        ('{"url": "https://x/y.json", "sha256": "%s"}' % ("a" * 64), "names another url"),
        ('{"url": "https://x/y.so"}', "a shared object is code"),
    ],
    ids=["size", "bytes", "cut", "list", "empty", "alias", "tag", "deep", "size-name", "url", "so"],
)
async def test_what_is_no_model_is_refused(
    site: ModelSite, fetcher: ModelFetcher, body: str | bytes, words: str
) -> None:
    url, sha256 = site.put("/model", body)

    with pytest.raises(FetchError) as caught:
        await fetcher.fetch(url, sha256)

    assert words in str(caught.value)


async def test_other_content_is_not_even_read(site: ModelSite, fetcher: ModelFetcher) -> None:
    url, sha256 = site.put("/model", "{")

    with pytest.raises(FetchError, match=f"sha256: what the url gives has {sha256}, expected aaaa"):
        await fetcher.fetch(url, "a" * 64)


async def test_silence_ends_at_the_deadline(site: ModelSite) -> None:
    site.hangs = {"/model"}
    fetcher = ModelFetcher([site.origin], ca_file=site.ca_file, timeout_s=0.3)

    with pytest.raises(FetchError, match=r"no answer within 0\.3 s"):
        await fetcher.fetch(f"{site.origin}/model", "a" * 64)
    await fetcher.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/x", "http://127.0.0.1 is not among the origins"),
        ("https://user:secret@127.0.0.1/x", "without user name or password"),
        ("file:///etc/passwd", 'scheme "file" cannot be fetched'),
        ("https://127.0.0.1:99999/x", "Port out of range"),
        ("https:///x", "expected a host"),
        ("https://[::1/x", "url: "),
    ],
)
async def test_nothing_is_asked_beyond_the_origins(
    site: ModelSite, fetcher: ModelFetcher, url: str, words: str
) -> None:
    with pytest.raises(FetchError) as caught:
        await fetcher.fetch(url, "a" * 64)

    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert site.asked == []


async def test_fetching_is_off_unless_origins_are_named(site: ModelSite) -> None:
    url, sha256 = site.put("/model", TABLE)
    fetcher = ModelFetcher(ca_file=site.ca_file)

    with pytest.raises(FetchError, match=r"may fetch from \(none\); add it to .*--model-origins"):
        await fetcher.fetch(url, sha256)
    assert site.asked == []


async def test_unknown_authority_is_not_trusted(site: ModelSite) -> None:
    url, sha256 = site.put("/model", TABLE)
    fetcher = ModelFetcher([site.origin])

    with pytest.raises(FetchError, match="cannot be fetched"):
        await fetcher.fetch(url, sha256)
    await fetcher.close()


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Models.Example.com", "https://models.example.com"),
        ("https://a:443/", "https://a"),
        ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_origin_has_one_form(text: str, origin: str) -> None:
    assert read_origin(text) == origin


@pytest.mark.parametrize("text", ["a", "https://a/x", "ftp://a", "https://u@a", "https://a?x", ""])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'more than|scheme "'):
        read_origin(text)


# From the ConfigMap to the disks.


class Loading:
    """A node with one disk, and the loader of its model."""

    def __init__(self, fetcher: ModelFetcher) -> None:
        self.world = World()
        self.world.models = "[]"
        self.world.store.put(DEVICE, make_device())
        self.world.start()
        self.fetcher = fetcher
        self.restart()

    def restart(self) -> None:
        self.world.start()
        self.notes, self.metrics = Notes(), Metrics()
        self.loader = ModelLoader(
            self.world.fleet,
            self.fetcher,
            events=self.notes,
            metrics=self.metrics,
            clock=self.world.clock,
        )

    async def load(self, *entries: dict[str, Any], text: str | None = None) -> float | None:
        self.see(*entries, text=text)
        return await self.again()

    def see(self, *entries: dict[str, Any], text: str | None = None) -> None:
        data = {"diskVendors": json.dumps(entries) if text is None else text}
        self.loader.see(ModelsSeen(name="m", namespace="n", uid="u", data=data))

    async def again(self) -> float | None:
        again_s = await self.loader.reconcile(KEY)
        await self.world.settle()
        return again_s

    @property
    def read_ratio(self) -> Any:
        return self.world.disk.get("function", {}).get("readRatio")

    @property
    def told(self) -> str:
        return "\n".join(note for _, _, note in self.notes.lines)


@pytest.fixture
def loading(fetcher: ModelFetcher) -> Loading:
    return Loading(fetcher)


async def test_expression_reaches_the_inventory(loading: Loading) -> None:
    assert await loading.load({**NAMES, "expression": "4"}) is None

    assert loading.read_ratio == dict.fromkeys(("512", "1k", "4k", "8k", "16k", "32k"), "4")
    assert loading.world.condition["reason"] == "OwnBooks"


async def test_url_reaches_the_inventory_and_is_asked_once(
    loading: Loading, site: ModelSite
) -> None:
    url, sha256 = site.put("/model", TABLE)
    entry = {**NAMES, "url": url, "sha256": sha256.upper()}

    assert await loading.load(entry) is None
    assert loading.read_ratio == {"4k": "6", "32k": "1"}
    await loading.load(entry, {"vendor": "Acme", "model": "X1", "expression": "1"})
    assert site.asked == ["/model"]
    assert loading.told == ""


async def test_url_can_give_an_expression(loading: Loading, site: ModelSite) -> None:
    url, sha256 = site.put("/model", "expression: '7'")

    await loading.load({**NAMES, "url": url, "sha256": sha256})

    assert loading.read_ratio["4k"] == "7"


async def test_failure_keeps_the_model_and_is_tried_again(
    loading: Loading, site: ModelSite
) -> None:
    await loading.load({**NAMES, "expression": "4"})
    url, sha256 = site.put("/model", OTHER_TABLE)
    right = site.pages.pop("/model")

    loading.see({**NAMES, "url": url, "sha256": sha256})
    again_s = await loading.loader.reconcile(KEY)
    await loading.loader.reconcile(KEY)

    assert again_s is not None
    assert 5 <= again_s <= 300
    assert site.asked == ["/model"]
    await loading.world.settle()
    assert loading.read_ratio["4k"] == "4"
    assert "status 404" in loading.world.condition["message"]
    assert "the model from before counts" in loading.world.condition["message"]
    assert "data.diskVendors[0]: Intel-P4510: url: status 404" in loading.told
    assert b"berthmaster_diskio_model_problems 1.0" in loading.metrics.render()
    site.pages["/model"] = right
    loading.world.now_s += again_s
    assert await loading.again() is None
    assert loading.read_ratio == {"512": "3"}
    assert "status" not in loading.world.condition["message"]


async def test_source_that_goes_away_changes_nothing_over_a_restart(
    loading: Loading, site: ModelSite
) -> None:
    url, sha256 = site.put("/model", TABLE)
    await loading.load({**NAMES, "url": url, "sha256": sha256})
    site.pages.clear()

    loading.restart()
    assert await loading.load({**NAMES, "url": url, "sha256": sha256}) is not None

    assert loading.read_ratio == {"4k": "6", "32k": "1"}
    assert loading.world.condition["reason"] == "OwnBooks"


async def test_removed_entry_takes_the_model_away(loading: Loading) -> None:
    await loading.load({**NAMES, "expression": "4"})

    await loading.load()

    assert loading.world.condition["reason"] == "ModelNotFound"
    assert "function" not in loading.world.disk


async def test_faulty_entry_names_itself_where_there_is_no_model(loading: Loading) -> None:
    await loading.load({**NAMES, "expression": "blockSize ="})

    assert loading.world.condition["reason"] == "ModelNotFound"
    message = loading.world.condition["message"]
    assert message.startswith("normalizer Intel-P4510 not found: ConfigMap ioi-system/normal")
    assert "data.diskVendors[0]: Intel-P4510: expression: <input>:1:" in message


async def test_unreadable_text_changes_nothing_over_a_restart(loading: Loading) -> None:
    await loading.load({**NAMES, "expression": "4"})

    loading.restart()
    await loading.load(text="[{")

    assert loading.read_ratio["4k"] == "4"
    assert "data.diskVendors: not JSON" in loading.world.condition["message"]


async def test_own_entry_wins_over_the_vendors_and_that_over_all(loading: Loading) -> None:
    for_all = {"vendor": "*", "model": "*", "expression": "9"}
    for_vendor = {"vendor": "Intel", "model": "*", "expression": "8"}

    await loading.load(for_all)
    assert loading.read_ratio["4k"] == "9"
    await loading.load(for_all, for_vendor)
    assert loading.read_ratio["4k"] == "8"
    await loading.load(for_all, for_vendor, {**NAMES, "expression": "7"})
    assert loading.read_ratio["4k"] == "7"
    # A slip in one's own entry must not silently turn the disk into another.
    await loading.load(for_all, for_vendor, {**NAMES, "expression": "?"})
    assert loading.read_ratio["4k"] == "7"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "http://localhost:8080/foo/foo.so"}, "a shared object is code"),
        ({"url": "https://a/b.json"}, "sha256: expected the 64 hexadecimal digits"),
        ({"url": 7}, "url: expected text, found int"),
        ({"expression": "1", "readRatio": {}}, "keep one of the two"),
        ({}, "says no model, expected readRatio and writeRatio tables, an expression, or the url"),
        ({"expression": "x" * 3000}, "at most 2048"),
        ({"vendor": "*"}, 'vendor "*" goes with model "*" only'),
    ],
)
async def test_faulty_entry_is_told(loading: Loading, fields: dict[str, Any], words: str) -> None:
    await loading.load({**NAMES, **fields})

    assert "data.diskVendors[0]: " in loading.told
    assert words in loading.told


async def test_there_is_an_end_to_expressions(loading: Loading) -> None:
    entries = [{"vendor": "V", "model": str(it), "expression": "1"} for it in range(257)]

    await loading.load(*entries)

    assert len(loading.world.fleet.models.functions) == 256
    assert "only 256 expressions and urls are read" in loading.told


async def test_change_is_handed_on_and_deletion_too() -> None:
    dirty: list[str] = []
    fleet = Fleet(diskio_namespace="ioi-system", clock=lambda: 0.0, on_dirty=dirty.append)
    notes = Notes()
    loader = ModelLoader(fleet, ModelFetcher(), events=notes, metrics=Metrics())
    changed: list[str] = []
    handler = ModelsHandler(loader, changed.append)
    data = {"diskVendors": json.dumps([{**NAMES, "readRatio": {}}, {"vendor": "V", "model": ""}])}
    seen = ModelsSeen(name="m", namespace="n", uid="u", data=data)

    handler.take(EventKind.ADDED, seen)
    await loader.reconcile(changed.pop())
    assert fleet.models.functions == {"Intel-P4510": DiskModel()}
    assert notes.lines[0][:2] == ("ConfigMap", "BadDiskModel")
    assert "data.diskVendors[1]" in notes.lines[0][2]
    handler.take(EventKind.DELETED, seen)
    await loader.reconcile(changed.pop())
    assert fleet.models.functions == {}
