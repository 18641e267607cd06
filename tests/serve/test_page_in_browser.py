"""The page as a browser shows it: the real service on a real socket, real decoding, and a classifier that says what it is told."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest

from rbft.api import ClassifyAnswer, ModelVersion, RationaleAnswer
from rbft.config import ModelConfig, ServeConfig
from rbft.errors import EngineGoneError, OverloadedError
from rbft.keys import add_key, remove_key
from rbft.records import Clip
from rbft.video.pool import DecodePool
from serve.app import build_app
from serve.attention import AttentionModel
from serve.clips import Seen
from serve.model import ServedModel
from serve.service import facts
from tests.browser import Page, browser_page, needs_browser
from tests.serve.conftest import listening
from tests.serve.samples import SPEC, TASK
from tests.serve.scripted import VERSION, ScriptedClassifier, raising

pytestmark = needs_browser

PHONE, DESK = 390, 1280
HOSTILE = "Scene: <script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
SEEN = "!document.querySelector('#result').hidden"
WRONG = "!document.querySelector('#error').hidden"
FRAMES = "document.querySelectorAll('#frames img').length"


class Looking(ScriptedClassifier):
    """Decodes what it is given. Its answer is "abnormal"; its text comes a piece each time `tell` is called."""

    def __init__(self, decoders: DecodePool) -> None:
        super().__init__(pieces=("Scene: ", "a hallway ", "at night"))
        self._decoders = decoders
        self.ranked = {"abnormal": 0.75, "normal": 0.25}
        self._told = threading.Semaphore(0)
        self.before_piece = self._wait

    def tell(self, num_pieces: int = 1) -> None:
        self._told.release(num_pieces)

    async def _wait(self, number: int) -> None:
        while not self._told.acquire(blocking=False):
            await asyncio.sleep(0.01)

    async def look(self, path: Path) -> Clip:
        await super().look(path)
        return await self._decoders.decode_async(str(path), SPEC)

    async def classify(self, clip: Clip, context: str | None, threshold: float | None) -> ClassifyAnswer:
        answer = await super().classify(clip, context, threshold)
        return answer.model_copy(update={"label": "abnormal", "probabilities": self.ranked, "video": facts(clip)})

    async def explain(self, seen: Seen) -> AsyncGenerator[str | RationaleAnswer, None]:
        async for piece in super().explain(seen):
            if isinstance(piece, RationaleAnswer):
                gates = {"not_empty": True, "has_sections": False}
                yield piece.model_copy(update={"sections": self.task.parse_sections(piece.text), "gates": gates})
            else:
                yield piece


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("profile")) as found:
        found.keep_dialogs_closed()
        yield found


@pytest.fixture
def classifier(decoders: DecodePool) -> Looking:
    return Looking(decoders)


@pytest.fixture
def url(classifier: Looking, clip_path: Path) -> Iterator[str]:
    """Where a service without keys and with a sample listens."""
    with listening(build_app(classifier, ServeConfig(samples=(str(clip_path),)), 2, 1)) as address:
        yield address


@pytest.fixture
def looking_url(classifier: Looking, clip_path: Path, trained_folder: Path) -> Iterator[str]:
    """Where a service listens that also tells where its (tiny, random) model looks."""
    served = ServedModel(trained_folder, ModelVersion(name="tiny", fingerprint="f"), TASK, SPEC, {})
    looker = AttentionModel(served, ModelConfig(path="", dtype="float32"), 4)
    with listening(build_app(classifier, ServeConfig(samples=(str(clip_path),)), 2, 1, looker=looker)) as address:
        yield address


def _opened(page: Page, url: str, width: int = DESK) -> None:
    page.open(f"{url}/", width=width)
    page.run("sessionStorage.clear()")
    page.open(f"{url}/", width=width)
    page.wait_for("!document.querySelector('#choose').hidden || !document.querySelector('#key-form').hidden")


def _classified(page: Page, url: str, clip: Path, width: int = DESK) -> None:
    _opened(page, url, width)
    page.choose_file("#file", clip)
    page.wait_for(SEEN)


def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def _text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector('{selector}').innerText"))


def test_an_upload_shows_label_probabilities_and_frames(page: Page, url: str, classifier: Looking, clip_path: Path) -> None:
    _classified(page, url, clip_path)
    page.wait_for(f"{FRAMES} === 4")
    assert _text(page, "#label") == "abnormal"
    assert page.run("[...document.querySelectorAll('#bars li')].map(e => e.innerText.split('\\n'))") == [
        ["abnormal", "75.0\N{NO-BREAK SPACE}%"],
        ["normal", "25.0\N{NO-BREAK SPACE}%"],
    ]
    widths = page.run("[...document.querySelectorAll('.bar')].map(e => e.offsetWidth / e.parentElement.offsetWidth)")
    assert widths == pytest.approx([0.75, 0.25], abs=0.01)
    assert page.run("[...document.querySelectorAll('#frames img')].map(e => [e.alt, e.naturalWidth > 0])") == [
        [f"Frame at {time_s}.0\N{NO-BREAK SPACE}s", True] for time_s in range(4)
    ]
    assert "Answered: abnormal" in _text(page, "#status")
    assert classifier.num_bytes == [clip_path.stat().st_size]
    assert page.complaints() == []


def test_a_rationale_comes_in_while_it_is_written(page: Page, url: str, classifier: Looking, clip_path: Path) -> None:
    _classified(page, url, clip_path)
    page.click("#ask")
    for said in ("Scene:", "Scene: a hallway"):
        classifier.tell()
        page.wait_for(f"document.querySelector('#rationale').innerText.trim() === '{said}'")
        assert _text(page, "#ask") == "Stop" and "writes" in _text(page, "#status")
    classifier.tell()
    page.wait_for("document.querySelector('#rationale dd')")
    assert _text(page, "#rationale") == "Scene\na hallway at night"
    assert "1 of 2 checks of the text passed; not: has sections" in _text(page, "#checks")
    assert len(classifier.paths) == 1, "no second upload"
    page.click("#ask")
    classifier.tell()
    page.wait_for("document.querySelector('#rationale').innerText.trim() === 'Scene:'")
    page.click("#ask")
    page.wait_for("document.querySelector('#status').innerText === 'Stopped.'")
    page.wait_for("document.querySelector('#ask').innerText === 'Ask again'")
    _until(lambda: classifier.num_closed == 2, "the engine has nothing more to write")


def test_a_rationale_that_fails_on_the_way_leaves_what_was_said_and_can_be_asked_again(
    page: Page, url: str, classifier: Looking, clip_path: Path
) -> None:
    wait = classifier.before_piece

    async def fail_at_the_second(number: int) -> None:
        if number == 1:
            raise EngineGoneError("the engine is being replaced")

    classifier.before_piece = fail_at_the_second
    _classified(page, url, clip_path)
    page.click("#ask")
    page.wait_for(WRONG)
    assert "The engine is being replaced" in _text(page, "#error") and _text(page, "#rationale").strip() == "Scene:"
    classifier.before_piece = wait
    classifier.tell(3)
    page.click("#error button")
    page.wait_for("document.querySelector('#rationale dd')")
    assert _text(page, "#rationale") == "Scene\na hallway at night"


def test_where_it_looked_lies_over_the_frames_and_goes_again(page: Page, looking_url: str, classifier: Looking, clip_path: Path) -> None:
    _classified(page, looking_url, clip_path)
    page.wait_for(f"{FRAMES} === 4")
    pictures = "[...document.querySelectorAll('#frames img')].map(e => e.src)"
    frames = page.run(pictures)
    page.click("#look")
    page.wait_for("document.querySelector('#look').ariaPressed === 'true'")
    heatmaps = page.run(pictures)
    assert len(heatmaps) == 4 and not set(heatmaps) & set(frames)
    alts = page.run("[...document.querySelectorAll('#frames img')].map(e => [e.alt, e.naturalWidth > 0])")
    assert all("% of the attention" in alt and is_drawn for alt, is_drawn in alts)
    assert "under their heatmaps" in page.run("document.querySelector('#frames').ariaLabel")
    assert "of its attention goes to the video" in _text(page, "#looks") and "Heatmaps" in _text(page, "#status")
    page.click("#look")
    assert page.run(pictures) == frames and page.run("document.querySelector('#looks').hidden")
    assert page.run("document.querySelector('#look').ariaPressed") == "false"
    page.click("#look")
    assert page.run(pictures) == heatmaps, "at once, as they are there already"
    page.choose_file("#file", clip_path)
    page.wait_for(f"{FRAMES} === 4 && document.querySelector('#look').ariaPressed === 'false'")
    assert len(classifier.paths) == 2, "no upload for the heatmaps"
    assert page.run("document.querySelector('#shell').textContent").count("/v1/attention") == 1
    assert page.complaints() == []


def test_where_it_looked_is_reached_by_keyboard_and_fits_on_a_phone(page: Page, looking_url: str) -> None:
    _opened(page, looking_url, PHONE)
    page.click("#samples button")
    page.wait_for(f"{SEEN} && {FRAMES} === 4")
    for _ in range(20):
        page.press("Tab")
        if page.run("document.activeElement.id") == "look":
            break
    page.press("Enter")
    page.wait_for("document.querySelector('#look').ariaPressed === 'true'")
    assert page.run("document.activeElement.id") == "look", "the focus stays"
    assert page.run("document.documentElement.scrollWidth") == PHONE and page.run("document.querySelector('#look').offsetHeight") >= 44


def test_a_service_that_reads_no_attention_shows_no_button_for_it(page: Page, url: str, clip_path: Path) -> None:
    _classified(page, url, clip_path)
    page.wait_for(f"{FRAMES} === 4")
    assert not page.run("document.querySelector('#look').checkVisibility()")
    assert "/v1/attention" not in page.run("document.querySelector('#shell').textContent")


def test_of_two_videos_the_later_is_shown(page: Page, url: str, classifier: Looking, clip_path: Path, tmp_path: Path) -> None:
    has_come, may_go_on = threading.Event(), threading.Event()

    async def wait_once() -> None:
        if not has_come.is_set():
            has_come.set()
            await asyncio.to_thread(may_go_on.wait)

    classifier.act = wait_once
    later = tmp_path / "later.mp4"
    later.write_bytes(clip_path.read_bytes())
    _opened(page, url)
    page.choose_file("#file", clip_path)
    _until(has_come.is_set, "the first video is looked at")
    assert "Looking at the video" in _text(page, "#status")
    page.choose_file("#file", later)
    page.wait_for(SEEN)
    may_go_on.set()
    assert _text(page, "#source") == "later.mp4" and page.run("document.querySelector('#error').hidden")


def test_of_many_labels_the_likeliest_are_shown_until_all_are_asked_for(page: Page, url: str, classifier: Looking, clip_path: Path) -> None:
    classifier.ranked = {f"label {number}": 0.5**number for number in range(1, 12)}
    _classified(page, url, clip_path)
    shown = "[...document.querySelectorAll('#bars .name')].filter(e => e.checkVisibility()).length"
    assert page.run(shown) == 8
    page.click("#bars button")
    assert page.run(shown) == 11


def test_a_service_that_keeps_no_video_says_so_and_explains_by_a_second_upload(page: Page, classifier: Looking, clip_path: Path) -> None:
    with listening(build_app(classifier, ServeConfig(clip_cache_bytes=0), 2, 1)) as url:
        _classified(page, url, clip_path)
        assert "keeps no frames" in _text(page, "#no-frames")
        classifier.tell(3)
        page.click("#ask")
        page.wait_for("document.querySelector('#rationale dd')")
    assert len(classifier.paths) == 2


def test_a_video_that_the_service_has_no_more_is_uploaded_again_for_its_rationale(page: Page, classifier: Looking, clip_path: Path) -> None:
    with listening(build_app(classifier, ServeConfig(clip_cache_s=0.5), 2, 1)) as url:
        _classified(page, url, clip_path)
        time.sleep(0.7)
        classifier.tell(3)
        page.click("#ask")
        page.wait_for("document.querySelector('#rationale dd')")
    assert len(classifier.paths) == 2


@pytest.mark.parametrize("pieces", [(HOSTILE,), (HOSTILE[:20], HOSTILE[20:])])
def test_markup_in_a_rationale_is_text(page: Page, url: str, classifier: Looking, clip_path: Path, pieces: tuple[str, ...]) -> None:
    classifier.pieces = pieces
    _classified(page, url, clip_path)
    page.click("#ask")
    classifier.tell(len(pieces))
    page.wait_for("document.querySelector('#rationale dd')")
    assert _text(page, "#rationale dd") == HOSTILE.removeprefix("Scene: ")
    assert page.run("document.querySelectorAll('main script, #rationale img').length") == 0
    assert "taken over" not in page.run("document.title")
    assert page.complaints() == []


@pytest.mark.parametrize(
    "attack",
    [
        "document.body.innerHTML = '<img src=x onerror=evil>'",
        "document.body.setAttribute('onclick', 'evil')",
        "document.body.append(Object.assign(document.createElement('script'), { text: 'evil' }))",
    ],
)
def test_a_mistake_that_made_code_of_text_would_be_refused(page: Page, url: str, attack: str) -> None:
    _opened(page, url)
    refused = page.run(f"(() => {{ try {{ {attack}; return ''; }} catch (error) {{ return error.message; }} }})()")
    assert "Trusted" in refused and not page.run("document.querySelector('body > img, body > script')")


@pytest.mark.parametrize("address", ["https://example.com/x", "http://127.0.0.1:1/x"])
def test_the_page_talks_to_its_service_alone(page: Page, url: str, address: str) -> None:
    _opened(page, url)
    page.run(f"fetch('{address}').catch(() => {{}})")
    page.wait_for("true")
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


def test_a_broken_file_is_told_and_the_next_one_is_answered(page: Page, url: str, clip_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "<img src=x>.mp4"
    broken.write_bytes(clip_path.read_bytes()[:400])
    _opened(page, url)
    page.choose_file("#file", broken)
    page.wait_for(WRONG)
    assert "The upload" in _text(page, "#error") and page.run("document.querySelector('#error').role") == "alert"
    assert page.run("document.querySelector('#result').hidden")
    page.choose_file("#file", clip_path)
    page.wait_for(SEEN)
    assert page.run("document.querySelector('#error').hidden")


def test_an_overloaded_service_can_be_asked_again(page: Page, url: str, classifier: Looking, clip_path: Path) -> None:
    classifier.act = raising(OverloadedError("too many requests wait already; try again later"))
    _opened(page, url)
    page.choose_file("#file", clip_path)
    page.wait_for(WRONG)
    assert "Try again (best in 5 s)" in _text(page, "#error")
    classifier.act = None
    page.click("#error button")
    page.wait_for(SEEN)


def test_a_file_that_is_too_large_is_not_even_sent(page: Page, classifier: Looking, clip_path: Path) -> None:
    with listening(build_app(classifier, ServeConfig(max_upload_bytes=1000), 2, 1)) as url:
        _opened(page, url)
        page.choose_file("#file", clip_path)
        page.wait_for(WRONG)
        assert "larger than the service takes" in _text(page, "#error")
    assert classifier.paths == []


def test_a_file_may_be_dropped(page: Page, url: str) -> None:
    _opened(page, url)
    page.run("""fetch('/v1/samples/1').then(found => found.blob()).then(blob => {
        const dropped = new DataTransfer();
        dropped.items.add(new File([blob], 'dropped.mp4'));
        document.querySelector('h1').dispatchEvent(new DragEvent('drop', { dataTransfer: dropped, bubbles: true, cancelable: true }));
    })""")
    page.wait_for(SEEN)
    assert _text(page, "#source") == "dropped.mp4"


def test_with_the_keyboard_alone(page: Page, url: str, classifier: Looking) -> None:
    _opened(page, url)

    def tab_to(selector: str) -> None:
        for _ in range(20):
            page.press("Tab")
            if page.run(f"document.activeElement.matches('{selector}')"):
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#file")
    assert page.run("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid", "the focus is seen"
    page.press("Enter")
    page.wait_for("true")
    assert page.num_dialogs == 1
    tab_to("#samples button")
    page.press("Enter")
    page.wait_for(SEEN)
    tab_to("#frames")
    tab_to("#ask")
    page.press("Enter")
    classifier.tell(3)
    page.wait_for("document.querySelector('#rationale dd')")
    assert page.run("document.activeElement.id") == "ask", "the focus stays"
    tab_to("#result summary")
    page.press("Enter")
    tab_to(".command button")


def test_a_screen_reader_finds_names_for_all_it_can_reach(page: Page, url: str, clip_path: Path) -> None:
    _classified(page, url, clip_path)
    page.wait_for(f"{FRAMES} === 4")
    assert (
        page.run("""[...document.querySelectorAll('button, input, textarea, img, [role=region], [role=group], ul, section')].filter(e =>
        e.checkVisibility() && !(e.ariaLabel || e.alt || e.labels?.length || e.innerText?.trim() || e.getAttribute('aria-labelledby'))
    ).map(e => e.outerHTML)""")
        == []
    )
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("[...document.querySelectorAll('h1, h2, h3')].map(e => e.tagName)") == ["H1", "H2", "H3", "H3"]


@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_window(page: Page, url: str, classifier: Looking, tmp_path: Path, clip_path: Path, width: int) -> None:
    named = tmp_path / f"{'a-rather-long-name-' * 8}.mp4"
    named.write_bytes(clip_path.read_bytes())
    classifier.pieces = ("Scene: " + "x" * 300,)
    _classified(page, url, named, width)
    page.wait_for(f"{FRAMES} === 4")
    classifier.tell()
    page.click("#ask")
    page.wait_for("document.querySelector('#rationale dd')")
    page.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.run("document.documentElement.scrollWidth") == width
    small = "[...document.querySelectorAll('button:not(.link)')].filter(e => e.checkVisibility() && e.offsetHeight < 44).length"
    assert page.run(small) == 0, "fingers need 44 pixels"


def test_the_commands_can_be_pasted_into_a_shell(page: Page, url: str, classifier: Looking, clip_path: Path, tmp_path: Path) -> None:
    classifier.tell(3)
    odd = tmp_path / 'it\'s; $(touch x), "here".mp4'
    odd.write_bytes(clip_path.read_bytes())
    _opened(page, url)
    page.run("document.querySelector('#context').value = \"a 'title'\"")
    page.choose_file("#file", odd)
    page.wait_for(SEEN)
    first, second = page.run("[...document.querySelectorAll('pre')].map(e => e.textContent)")
    quoted = "'video=@\"it'\\''s; $(touch x), \\\"here\\\".mp4\"'"
    assert first == f"curl -F {quoted} --form-string 'context=a '\\''title'\\''' {url}/v1/classify"
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-c", f"{first}; {second}"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
        assert '"label":"abnormal"' in done.stdout and "event: end" in done.stdout
        assert classifier.explained[-1].context == "a 'title'" and not (tmp_path / "x").exists()
    assert second.startswith('curl -N -H "Accept: text/event-stream" -F video_id=') and second.endswith(f" {url}/v1/rationale")
    page.click("#result summary")
    page.click(".command button")
    page.wait_for("['Copied', 'Selected'].includes(document.querySelector('.command button').innerText)")


def test_a_service_with_keys_is_asked_for_one_and_it_stays_in_the_tab(
    page: Page, classifier: Looking, clip_path: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    key = add_key(keys, "a")
    add_key(keys, "b")
    with listening(build_app(classifier, ServeConfig(keys=str(keys), samples=(str(clip_path),)), 2, 1)) as url:
        _opened(page, url)
        assert page.run("document.activeElement.id") == "key" and page.run("document.querySelector('#choose').hidden")

        def use(given: str) -> None:
            page.run(f"document.querySelector('#key').value = '{given}'")
            page.click("#key-form button")

        use("wrong")
        page.wait_for(WRONG)
        assert "does not know this key" in _text(page, "#error")
        use(key)
        page.wait_for("!document.querySelector('#choose').hidden")
        page.click("#samples button")
        page.wait_for(f"{SEEN} && {FRAMES} === 4")
        commands = page.run("document.querySelector('#shell').textContent")
        assert '-H "Authorization: Bearer $RBFT_KEY"' in commands and key not in page.run("document.documentElement.outerHTML")
        assert page.run("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
        remove_key(keys, "a")
        page.click("#samples button")
        page.wait_for("!document.querySelector('#key-form').hidden")
        assert page.run("document.querySelector('#result').hidden") and page.run("sessionStorage.length") == 0
    assert VERSION.fingerprint in _text(page, "footer")
