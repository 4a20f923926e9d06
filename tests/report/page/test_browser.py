"""The report in a real browser: charts, filters, links, keys, and texts that try to be more than text."""

import contextlib
import json
import re
import time
from urllib.parse import parse_qs
from xml.etree import ElementTree

import pytest
from playwright.sync_api import expect

from mft_jax.report.page import write_report
from tests.report.page.made_run import TRAINING, debate, make_run

pytestmark = pytest.mark.browser

ESCAPE, OVERRIDE = "\x1b[31mred\x1b[0m", "\u202egnirts\u202c"
HOSTILE = (
    "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"></script>"
    f"{ESCAPE}{OVERRIDE}<b>bold</b>"
)
FORMULAS = (
    r"So \(\frac{1}{2}\) and $$x^2$$ and \href{javascript:alert(1)}{\(\href{javascript:alert(1)}{x}\)} cost $5 or $6."
)
EVALUATION = (
    debate("e1", [["4", "5"], ["5", "5"]], ["4", "5"]),
    debate("e2", [["7", "8"], ["8", "8"]], ["7", "8"], gold="7", question="What is 3+4?"),
    debate("e3", [["4", "4"], ["5", "5"]], ["4", "4"], said="Then \\boxed{{{}}}.", question="Which half?"),
    debate("e4", [["5", "5"], ["5", "5"]], ["5", "5"], question=HOSTILE, said=HOSTILE, summary=HOSTILE + "{}"),
    debate(
        "e5",
        [["5", "5"], ["5", None]],
        ["5", "5"],
        question="needle",
        said=FORMULAS.replace("{", "{{").replace("}", "}}"),
    ),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The path of the report of a finished run, and of one that was killed."""
    directory = tmp_path_factory.mktemp("browser")
    runs = [
        make_run(directory / "first", EVALUATION, iterations=2),
        make_run(directory / "second", EVALUATION[:2], finished=False),
    ]
    write_report([run.path for run in runs], directory / "report.html")
    return directory / "report.html"


@contextlib.contextmanager
def opened(chromium, path, address="", **options):
    """The page, after it has read its data. What it tells the console, and what it asks of the network, is an error."""
    context = chromium.new_context(**{"viewport": {"width": 1200, "height": 800}} | options)
    context.set_default_timeout(10_000)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
    page.goto(f"file://{path}{address}")
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page
    assert page.title().startswith("mft report: ")  # "taken" if a text was run as a script
    assert [text for text in said if not text.startswith("data:")] == []
    context.close()


def questions(page):
    return page.locator(".row .question").all_text_contents()


def address_of(page):
    """(the view, its parameters) in the address."""
    view, _, query = page.url.partition("#")[2].partition("?")
    return view, {name: value for name, (value,) in parse_qs(query).items()}


def test_the_summary(chromium, report):
    with opened(chromium, report) as page:
        assert page.locator("h1").all_text_contents() == ["first", "second"]
        titles = page.locator("figure h3").all_text_contents()
        assert titles[:5] == [
            "Accuracy over iterations", "Accuracy against compute", "Diversity over iterations", "pass@k",
            "Precision and coverage of the votes",
        ]  # fmt: skip
        assert "Training of each adapter: first" in titles
        expect(page.locator("figure .plot:not(:has(svg))")).to_have_count(0)
        rows = page.locator(".results tbody tr").all_text_contents()
        assert (
            len(rows) == 4
        )  # the untuned debate and two iterations of the first run, the untuned debate of the second
        assert "60.0" in rows[0]
        judged = page.locator(".monitor tbody tr").all_text_contents()
        assert len(judged) == 2  # the iterations of the first run
        assert all("multiagent_ft" in row and "%" not in row for row in judged)
        (warning,) = page.locator(".warning").all_text_contents()
        assert "This run is interrupted" in warning
        assert "iteration 1: evaluation" in warning
        flow = page.locator("figure", has_text="debate, untuned").first
        assert "wrong → right: 1" in flow.text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_chart_is_saved_as_a_file_of_its_own(chromium, report, tmp_path, scheme):
    with opened(chromium, report, color_scheme=scheme) as page:
        saved = {}
        for title in ("Accuracy over iterations", "debate, untuned"):
            figure = page.locator("figure:has(h3)", has_text=title).first
            for kind in ("SVG", "PNG"):
                with page.expect_download() as download:
                    figure.locator(f"[data-kind={kind}]").click()
                download.value.save_as(tmp_path / download.value.suggested_filename)
                saved[title, kind] = tmp_path / download.value.suggested_filename
        assert page.locator(".light").count() == 0
    chart = saved["Accuracy over iterations", "SVG"]
    assert chart.name == "accuracy_over_iterations.svg"
    text = chart.read_text()
    ElementTree.fromstring(text)  # well-formed
    assert all(f">{name}</text>" in text for name in ("Accuracy over iterations", "first: debate", "second: debate"))
    assert "rgb(0, 114, 178)" in text  # the first colour, also if the page is dark
    assert re.search(r"var\(--|currentColor|url\(", re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)) is None
    assert ">wrong → right: 1</text>" in saved["debate, untuned", "SVG"].read_text()
    size = [float(n) for n in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()]
    image = saved["Accuracy over iterations", "PNG"].read_bytes()
    assert [int.from_bytes(image[place : place + 4]) for place in (16, 20)] == [int(3 * n) for n in size]


def test_measures_of_diversity(chromium, tmp_path):
    """Those in results.json can be chosen, and only those."""
    run = make_run(tmp_path / "run", iterations=2)
    results = json.loads(run.results_file.read_text())
    for row in results:
        row["diversity"] |= {"nll": 1.5 + row["iteration"], "kl_to_base": 0.25}
    run.results_file.write_text(json.dumps(results))
    write_report([run.path], tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html") as page:
        figure = page.locator("figure", has_text="Diversity over iterations")
        select = page.get_by_label("measure")
        assert select.locator("option").all_text_contents() == ["disagreement", "likelihood", "from the base"]
        expect(figure).to_contain_text("1 minus the mean share")
        select.select_option("nll")
        expect(figure).to_contain_text("Negative log-likelihood")
        expect(figure.locator(".plot")).to_contain_text("nats per token")


def test_filters_and_sorting(chromium, report):
    with opened(chromium, report, "#debates?run=first&method=debate") as page:
        assert len(questions(page)) == 5
        page.click("[data-flag=right_to_wrong]")
        assert questions(page) == ["What is 3+4?", "needle"]
        assert address_of(page) == ("debates", {"run": "first", "method": "debate", "flags": "right_to_wrong"})
        page.click("[data-flag=right_to_wrong]")
        page.click("[data-flag=split]")
        assert questions(page) == ["Which half?", "needle"]
        page.click("[data-flag=unparsed]")
        assert questions(page) == ["needle"]
        page.click("[data-flag=unparsed]")
        page.click("[data-flag=split]")
        page.get_by_label("method").select_option("")
        page.get_by_label("iteration").select_option("2")
        assert page.locator(".row .stage").first.text_content() == "first: multiagent_ft, iteration 2"
        page.get_by_label("sort").select_option("right")
        assert questions(page)[0] == "What is 3+4?"
        page.get_by_label("questions").select_option("train")
        assert questions(page) == [own.question for own in reversed(TRAINING)]
        page.click("[data-flag=trained]")
        assert questions(page) == [TRAINING[0].question]


def test_the_search_finds_texts_of_messages(chromium, report):
    with opened(chromium, report, "#debates?run=first&iteration=1") as page:
        page.keyboard.press("/")
        page.keyboard.type("E3 0.")  # in a summary
        expect(page.locator(".row")).to_have_count(1)
        assert questions(page) == ["Which half?"]
        page.reload()  # the search is in the address
        expect(page.locator(".row")).to_have_count(1)


def test_a_debate_with_its_rounds(chromium, report):
    with opened(chromium, report, "#debate?run=first&stage=iteration_1/eval/eval&id=e1") as page:
        cells = page.locator(".cell")
        assert cells.count() == 4
        texts = [" ".join(text.split()) for text in cells.all_text_contents()]
        assert "generator_0" in texts[0]
        assert "critic_1" in texts[3]
        assert cells.nth(2).locator(".seen").text_content().endswith("They say e1 0.")
        assert page.locator(".cell mark").all_text_contents() == ["4", "5", "5", "5"]
        assert "40 + 10 tokens" in texts[0]
        assert "FLOPs" in texts[0]
        assert page.locator(".cell .mark.wrong").count() == 1
        assert "vote✗4" in page.locator(".round").first.text_content()
        cards = page.locator(".card h3").all_text_contents()
        assert cards == [
            "first: debate, untuned", "first: multiagent_ft, iteration 1", "first: multiagent_ft, iteration 2",
            "second: debate, untuned",
        ]  # fmt: skip
        page.click("text=Show the last answers")
        assert page.locator(".card").nth(3).locator(".last-answer").first.text_content() == "Agent 1It is 5."


def test_what_became_training_data(chromium, report):
    with opened(chromium, report, "#debate?run=first&stage=iteration_1/debate/train&id=t1") as page:
        trained = [cell.locator(".trained").all_text_contents() for cell in page.locator(".cell").all()]
        assert trained == [
            ["trains generator_0 (first)"],
            [],
            [],
            ["trains critic_1 (corrected)"],
        ]


def test_keys_and_links(chromium, report):
    with opened(chromium, report, "#debates?run=first&method=debate") as page:
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_selector(".cell")
        assert address_of(page) == ("debate", {"run": "first", "stage": "baselines/debate/eval", "id": "e2"})
        page.keyboard.press("j")
        page.wait_for_selector("text=Which half?")
        page.keyboard.press("]")
        page.wait_for_selector("text=first: multiagent_ft, iteration 1 ·")
        assert address_of(page)[1] == {"run": "first", "stage": "iteration_1/eval/eval", "id": "e3"}
        link = page.url
        page.keyboard.press("Escape")
        page.wait_for_selector(".rows")
        assert address_of(page) == ("debates", {"run": "first", "method": "debate"})
        page.keyboard.press("s")
        page.wait_for_selector(".results")
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.goto(link)
        page.wait_for_selector(".cell")
        assert page.locator(".question-text").text_content() == "Which half?"
        page.goto(link.replace("e3", "e99"))
        page.wait_for_selector("text=This report has no such debate.")


def test_hostile_texts_are_shown_as_text(chromium, report):
    with opened(chromium, report, "#debate?run=first&stage=iteration_1/eval/eval&id=e4") as page:
        shown = HOSTILE.replace("\x1b", "U+001B").replace("\u202e", "U+202E").replace("\u202c", "U+202C")
        assert page.locator(".question-text").text_content() == shown
        assert page.locator(".said").first.text_content() == shown
        assert page.locator(".seen .text").first.text_content() == f"{shown}e4 0"
        assert page.locator("main img, main script, main b:text-is('bold')").count() == 0
        page.goto(f"file://{report}#debates")
        page.wait_for_selector(".row")
        assert shown in questions(page)


def test_formulas_are_rendered_or_shown_as_text(chromium, report):
    with opened(chromium, report, "#debate?run=first&stage=iteration_1/eval/eval&id=e5") as page:
        said = page.locator(".said").first
        assert said.locator("math mfrac").count() == 1
        assert said.locator("math msup").count() == 1
        assert said.locator("a").count() == 0  # \href is not followed
        assert said.text_content().endswith("cost $5 or $6.")
        page.keyboard.press("m")
        expect(page.locator(".said math")).to_have_count(0)
        assert page.locator(".said").first.text_content() == FORMULAS
        page.goto(f"file://{report}#debate?run=first&stage=iteration_1/eval/eval&id=e3")
        page.wait_for_selector(".cell mark")
        assert page.locator(".cell mark").all_text_contents() == [f"\\boxed{{{answer}}}" for answer in "4545"]


def test_dark_mode_on_a_phone(chromium, report):
    with opened(chromium, report, viewport={"width": 360, "height": 700}, color_scheme="dark") as page:
        for view in ("#summary", "#debates", "#debate?run=first&stage=iteration_1/eval/eval&id=e1"):
            page.goto(f"file://{report}{view}")
            page.wait_for_selector("main > *")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"


def test_parts_beside_the_page(chromium, report):
    out = report.with_name("large.html")
    write_report([report.parent / "first"], out, max_bytes=0)
    address = "#debate?run=first&stage=iteration_1/eval/eval&id=e1"
    with opened(chromium, out, address) as page:
        assert page.locator(".cell").count() == 4
    for part in report.with_name("large_debates").iterdir():
        part.unlink()
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"file://{out}{address}")
    page.wait_for_selector("text=is missing: it belongs beside this file.")
    context.close()


def test_a_report_of_5000_debates_opens_quickly(chromium, tmp_path):
    evaluation = [
        debate(f"e{i}", [["4", "5"], ["5", "5"]], ["4", "5"], question=f"What is {i}+3?", said="word " * 60 + "{}")
        for i in range(2500)
    ]
    run = make_run(tmp_path / "big", evaluation, baselines=("debate",), iterations=1)
    write_report([run.path], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    started = time.perf_counter()
    with opened(chromium, tmp_path / "report.html", "#debates") as page:
        assert page.locator(".list-status").text_content().startswith("5,000 of 5,002 debates")
        assert page.locator(".row").count() == 100
        assert time.perf_counter() - started < 15  # 3 s on an idle machine
