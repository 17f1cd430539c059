"""The report: its text, and that it is inert, complete and self-contained."""

import dataclasses
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import FolderSource
from facelift_jax.evaluation import evaluator
from facelift_jax.evaluation.report import write_report
from facelift_jax.evaluation.results import (
    BASELINES,
    DEFINED,
    EvaluatedModel,
    SceneResult,
    metric_rows,
    summarize,
    table,
)
from facelift_jax.io.image_files import write_png, write_video

EVIL = '<script>alert(1)</script>&"x\udcff\u202e'
SHOWN = '<script>alert(1)</script>&"x??'
NAN = math.nan


def evaluation(better=0.0, **fields):
    """Three scenes; `better` (dB, and percent of iou) improves the held-out metrics."""
    angles = [[10.0, 50.0], [20.0, 70.0], [30.0, 100.0]]
    psnr_fg = [[20.5, 19.5], [12.5, 11.5], [15.0, NAN]]
    scenes = []
    for name, angle, values, factor in zip(
        ("easy", EVIL, "middle"), angles, psnr_fg, (1, 2, 3), strict=True
    ):
        held_out = float(np.nanmean(values)) + better * factor
        metrics = {
            "inputs/psnr_fg": 22.0,
            "held_out/psnr_fg": held_out,
            "inputs/iou": 0.9,
            "held_out/iou": 0.8 + 0.01 * better * factor,
            "held_out/depth_error": NAN,
            "gap": 22.0 - held_out,
            "inputs/own_view_share": 0.5,
            "health/visible": 12345.0,
        }
        undefined = {
            "held_out/psnr_fg": int(np.isnan(values).sum()),
            "held_out/depth_error": 2,
            "inputs/iou": 0,
        }
        scenes.append(SceneResult(name, ("", None), metrics, undefined, angle, values))
    scenes[0].metrics.update({"turntable/vps": 2.0, "surface/chamfer": 0.1})
    scenes[0].metrics.update({"true_turntable/vps": 1.0})
    return dataclasses.replace(summarize(scenes, None, None, {}), **fields)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of the report of a network between the refined hull and the hull."""
    folder = tmp_path_factory.mktemp("report")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    sheets = {}
    for number, name in enumerate((EVIL, "easy")):
        kinds = {kind: f"{number}_{kind}.png" for kind in ("inputs", "sheet", "maps")}
        sheets[name] = {kind: folder / file for kind, file in kinds.items()}
        for file in sheets[name].values():
            write_png(file, image)
    write_video(folder / "turntable.mp4", image[None].repeat(6, 0), 24)
    hulls = {"hull": evaluation(better=1.0), "hull_refined": evaluation(better=-1.0)}
    evaluated = evaluation(baselines=hulls, sheets=sheets, violations=2)
    source = FolderSource(tuple(folder / EVIL / x for x in "abc"), ("a", "b", "c"))
    command = ["python", "-m", "facelift_jax.evaluate", EVIL, "it's"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "orig_argv", command)
        model = EvaluatedModel(EVIL, {"model": {"name": EVIL}})
        write_report(folder, evaluated, model, source, DataOptions())
    return folder, evaluated


class Elements(html.parser.HTMLParser):
    """Elements in order: [tag, attributes, the text directly in it]."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.all, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.all.append([tag, dict(attrs), ""])
        if tag not in self.VOID:
            self.open.append(self.all[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2] += data

    def of(self, *tags):
        return [x for x in self.all if x[0] in tags]


@pytest.fixture(scope="module")
def elements(page):
    return Elements((page[0] / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_self_contained_and_inert(elements):
    assert not elements.open
    names = {name for _, attributes, _ in elements.all for name in attributes}
    assert not {"style", "srcset", "poster", "action", "data"} & names
    assert not [name for name in names if name.startswith("on")]
    tags = {tag for tag, *_ in elements.all}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "svg"}
    ids = {attributes.get("id") for _, attributes, _ in elements.all}
    links = [a[x] for _, a, _ in elements.all for x in ("src", "href") if x in a]
    assert len(links) > 10
    for link in links:
        assert re.match(r"data:(image/(png|webp)|video/mp4);base64,", link) or (
            link[0] == "#" and link[1:] in ids
        )
    (policy,) = (a["content"] for _, a, _ in elements.of("meta") if "http-equiv" in a)
    allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert allowed.pop("style-src").startswith("'sha256-")
    none = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert allowed == none | {"img-src": "data:", "media-src": "data:"}


def test_names_of_data_are_escaped(elements):
    texts = [text for *_, text in elements.all]
    assert texts.count(SHOWN) >= 4  # checkpoint, table of scenes, images
    (command,) = (text for text in texts if text.startswith("python -m"))
    assert command == f"python -m facelift_jax.evaluate '{SHOWN}' 'it'\"'\"'s'"
    (settings,) = (text for text in texts if text.startswith("{"))
    settings = json.loads(settings)
    assert settings["model"] == {"name": EVIL}
    assert settings["examples"]["num_inputs"] == 6
    assert any(text.startswith("facelift_jax 0.") for text in texts)
    assert "3, 2 of them fail the data checks" in texts


def test_the_metrics_are_those_of_the_table_each_with_its_definition(page, elements):
    _, evaluated = page
    cells = [text for _, _, text in elements.of("td", "th", "summary")]
    defined = [a["title"] for _, a, _ in elements.of("details") if "title" in a]
    text = table(evaluated)
    rows = metric_rows(evaluated)
    assert len(rows) == len(defined) == 9
    for row, definition in zip(rows, defined, strict=True):
        assert definition in DEFINED[row.kind].values()
        at = cells.index(row.label)
        means = [(row.inputs, row.held_out), *row.baselines.values()]
        # one cell under two headings
        shown = [pair if pair[0] else pair[1:] for pair in means]
        expected = [*shown[0], row.interval, *sum(shown[1:], ()), row.notes]
        assert cells[at + 1 :][: len(expected)] == expected
        line = next(x for x in text.splitlines() if x.split()[:1] == [row.label])
        expected = [*means[0], row.interval, *sum(means[1:], ())]
        assert line.split()[1:] == " ".join(expected).split()
    psnr_fg, _, depth, gap = rows[:4]
    assert psnr_fg[3:5] == ("22.00", "15.67")
    assert psnr_fg.baselines["hull"] == ("22.00", "17.67")
    assert psnr_fg.baselines["hull_refined"] == ("22.00", "13.67")
    assert gap.baselines == {"hull": ("", "4.333"), "hull_refined": ("", "8.333")}
    header = [text for text in cells if text.endswith(":held-out views")]
    assert header == [f"{x.label}:held-out views" for x in BASELINES.values()]
    assert psnr_fg.notes == "undefined in 1 held-out views"
    assert (depth.held_out, depth.interval) == ("-", "")
    assert depth.notes == "undefined in 6 held-out views, mean of 0 scenes"
    assert (gap.label, gap.inputs, gap.held_out) == ("gap", "", "6.333")
    assert not re.search(r"\bnan\b", " ".join(x for *_, x in elements.all), re.I)


def test_scenes_are_sorted_by_psnr_fg_below_the_means(elements):
    cells = [text for _, _, text in elements.of("th", "bdi", "td", "h2")]
    cells = cells[cells.index("Scenes, lowest psnr_fg first") :]
    names = ("mean", "mean of hull", "mean of hull, refined", SHOWN, "middle", "easy")
    at = [cells.index(name) for name in names]
    assert at == sorted(at)
    first = cells[at[3] + 1 : at[3] + 5]
    assert first == ["22.00", "12.00", "10.00", "0.8000"]
    assert [cells[i + 2] for i in at[:3]] == ["15.67", "17.67", "13.67"]


def write_other(page, evaluated, model=None):
    """The heading and the texts of the report of another evaluation."""
    model = model or EvaluatedModel("run", {})
    folder, _ = page
    source = FolderSource((folder / "a",), ("a",))
    other = folder / "other"
    other.mkdir(exist_ok=True)
    shutil.copy(folder / "turntable.mp4", other)
    write_report(other, evaluated, model, source, DataOptions())
    elements = Elements((other / "report.html").read_text())
    ((_, _, heading),) = elements.of("h1")
    return heading, [" ".join(text.split()) for *_, text in elements.all]


@pytest.mark.parametrize(
    ("better", "copies", "headline", "difference"),
    [
        (-1.0, 2, "Ahead of the visual hull", "ahead, +2.000 dB"),
        (
            0.0,
            2,
            "No clear difference from the visual hull",
            "no clear difference, 0.000 dB",
        ),
        (
            -1.0,
            1,  # three scenes, all of them better
            "Too few scenes to compare with the visual hull",
            "too few scenes, +2.000 dB",
        ),
    ],
)
def test_the_headline_depends_on_differences_per_scene(
    page, better, copies, headline, difference
):
    hulls = {"hull": evaluation(better), "hull_refined": evaluation(3.0)}
    evaluated = copied(evaluation(baselines=hulls), copies)
    heading, texts = write_other(page, evaluated)
    assert heading == headline
    assert difference in texts
    assert (
        "behind, -6.000 dB" if copies == 2 else "too few scenes, -6.000 dB"
    ) in texts
    assert has(texts, "which the network does not see")


def copied(evaluated, copies):
    """With every scene several times, also in the baselines."""
    baselines = {k: copied(x, copies) for k, x in evaluated.baselines.items()}
    scenes = evaluated.scenes * copies
    return dataclasses.replace(evaluated, scenes=scenes, baselines=baselines)


def has(texts, part):
    return any(part in text for text in texts)


@pytest.mark.parametrize(
    ("model", "other", "headline", "name", "kind"),
    [
        (
            EvaluatedModel(None, {}, 60),
            "hull",
            "Ahead of the visual hull",
            "the visual hull, refined by 60 gradient steps",
            "refined hull",
        ),
        (
            EvaluatedModel(None, {}),
            "hull_refined",
            "The visual hull, the baseline for networks",
            "the visual hull",
            "hull",
        ),
        (
            EvaluatedModel("run", {}, 7),
            "hull",
            "Ahead of the visual hull",
            "run, refined by 7 gradient steps",
            "refined network",
        ),
    ],
)
def test_the_page_says_what_is_evaluated(page, model, other, headline, name, kind):
    """A baseline is not compared with itself."""
    evaluated = copied(evaluation(baselines={other: evaluation(-1.0)}), 2)
    heading, texts = write_other(page, evaluated, model)
    assert heading == headline
    assert name in texts
    assert has(texts, f"which the {kind} does not see")
    assert "ahead, +2.000 dB" in texts
    labels = [x.rpartition(":")[0] for x in texts if x.endswith(":held-out views")]
    assert labels == [BASELINES[other].label]
    assert has(texts, "The refined hull starts from") == (other == "hull_refined")


def test_true_depth_is_compared_too(page):
    """Color and silhouette may improve while the shape does not."""
    evaluated = copied(evaluation(baselines={"hull": evaluation(-1.0)}), 2)
    for scene in evaluated.scenes:
        scene.metrics["held_out/depth_within_05R"] = 0.4
    hull = evaluated.baselines["hull"]
    for scene in hull.scenes:
        scene.metrics["held_out/depth_within_05R"] = 0.6
    hull.metrics["held_out/depth_within_05R"] = 0.6
    heading, texts = write_other(page, evaluated)
    assert heading == (
        "Compared with the visual hull: color ahead, silhouette ahead, depth behind"
    )
    assert "behind, -0.2000" in texts


def test_a_page_of_views_that_all_lack_a_metric(page):
    """For example, if no held-out view shows the object."""

    def without(evaluated):
        scenes = [
            dataclasses.replace(
                scene,
                metrics=scene.metrics | {"held_out/psnr_fg": NAN, "gap": NAN},
                psnr_fg=[NAN] * len(scene.angles),
            )
            for scene in evaluated.scenes
        ]
        return summarize(scenes, None, None, {})

    hulls = {key: without(hull) for key, hull in page[1].baselines.items()}
    evaluated = dataclasses.replace(without(page[1]), baselines=hulls)
    _, texts = write_other(page, evaluated)
    assert any(text.endswith("number of views in parentheses: none.") for text in texts)
    assert not re.search(r"\bnan\b", " ".join(texts), re.I)


def test_metrics_are_written_even_if_the_page_cannot_be(page, monkeypatch):
    folder, evaluated = page
    (folder / "full").mkdir()
    monkeypatch.setattr(evaluator, "write_ply_and_turntable", lambda *_: [])
    hull = evaluated.baselines["hull"]
    monkeypatch.setattr(evaluator, "evaluate", lambda *_, **__: hull)
    source = FolderSource((folder / "a",), ("a",), violations=1)
    with pytest.raises(FileNotFoundError, match=r"turntable\.mp4"):
        evaluator.write_evaluation(
            folder / "full",
            evaluated,
            None,
            None,
            None,
            lambda *_: (None, None),
            source,
            DataOptions(),
            EvaluatedModel(None, {}),
        )
    written = json.loads((folder / "full" / "metrics.json").read_text())
    psnr_fg = written["metrics"]["held_out/psnr_fg"]
    assert psnr_fg == evaluated.metrics["held_out/psnr_fg"]
    assert written["hull"]["metrics"] == written["metrics"]  # evaluated once
    assert written["hull_refined"]["metrics"]["held_out/psnr_fg"] != psnr_fg
    assert written["violations"] == 1


class Browser:
    """Chromium without network, driven through its DevTools protocol."""

    FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-sync
        --disable-background-networking --disable-component-update
        --proxy-server=127.0.0.1:1 --remote-debugging-pipe"""  # no proxy at port 1

    def __init__(self, folder):
        (theirs, commands), (answers, ours) = os.pipe(), os.pipe()
        # the protocol requires these file descriptors
        shell = ["bash", "-c", f'exec chromium "$@" 3<&{theirs} 4>&{ours}', "bash"]
        self.process = subprocess.Popen(
            [*shell, *self.FLAGS.split(), f"--user-data-dir={folder}"],
            pass_fds=(theirs, ours),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        self.commands = os.fdopen(commands, "wb", 0)
        self.answers = os.fdopen(answers, "rb")
        self.events, self.session, self.count = [], {}, 0

    def __enter__(self):
        self.watchdog = threading.Timer(60, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": session["sessionId"]}
        for domain in ("Log", "Runtime", "Network", "Page"):
            self(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.watchdog.cancel()
        self.commands.close()  # this ends Chromium
        self.process.wait(30)
        self.answers.close()

    def __call__(self, method, **parameters):
        self.count += 1
        command = {"id": self.count, "method": method, "params": parameters}
        self.commands.write(json.dumps(command | self.session).encode() + b"\0")
        while True:
            message = b""
            while not message.endswith(b"\0"):
                byte = self.answers.read(1)
                assert byte, "Chromium has ended"
                message += byte
            message = json.loads(message[:-1])
            if message.get("id") == self.count:
                return message["result"]
            self.events.append(message)


LOOK = """(async () => {
    if (document.readyState != "complete")
        await new Promise(done => addEventListener("load", done));
    const video = document.querySelector("video");
    while (video.readyState < 2 && !video.error)
        await new Promise(done => setTimeout(done, 20));
    return {
        title: document.title,
        images: [...document.images].map(image => image.naturalWidth),
        plays: video.canPlayType('video/mp4; codecs="avc1.64000a"'),
        video: [video.videoWidth, video.duration],
        tiles: getComputedStyle(document.querySelector(".tiles")).display,
        is_wide: document.documentElement.scrollWidth > innerWidth,
    }})()"""


@pytest.mark.skipif(
    not shutil.which("chromium") and "CI" not in os.environ,
    reason="needs Chromium on the PATH: apt-get install chromium",
)
def test_a_browser_without_network_shows_the_whole_page(page, tmp_path):
    assert shutil.which("chromium"), "apt-get install chromium"
    folder, _ = page
    phone = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    how = {"expression": LOOK, "awaitPromise": True, "returnByValue": True}
    with Browser(tmp_path) as browser:
        browser("Emulation.setDeviceMetricsOverride", **phone)
        browser("Page.navigate", url=(folder / "report.html").as_uri())
        shown = browser("Runtime.evaluate", **how)["result"]["value"]
        browser("Page.disable")
    assert shown["title"] == f"Evaluation of {SHOWN}"
    assert shown["images"] == [60, 1376, 60, 60, 60, 60, 60]
    assert shown["video"] == [60, 0.25] or not shown["plays"]
    assert shown["tiles"] == "grid"  # the policy allows its style sheet
    assert not shown["is_wide"]  # tables scroll, not the page
    methods = {event["method"] for event in browser.events}
    assert not methods & {"Log.entryAdded", "Runtime.consoleAPICalled"}
    urls = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in urls} == {"file", "data"}
