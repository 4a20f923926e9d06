"""Reading and comparing answers."""

import concurrent.futures
import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_jax.tasks import answers, grader
from mft_jax.tasks.answers import boxed, canonical, equivalent, parse_boxed, parse_numeric
from mft_jax.worker import Worker

quick = settings(deadline=None, max_examples=60)  # no deadline: the machine may be busy
formulas = settings(deadline=None, max_examples=25)  # these reach math-verify

FORMULAS = ["x+1", r"\sqrt{2}", "(1,2)", r"\frac{x}{2}", "AB", "3 apples", "yes", "-7", "0.5", "1/2", "", "}{"]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}} is it", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{x=\boxed{5}}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"} { \boxed{7}", "7"),
        (r"\boxed{7} and then \boxed{", "7"),
        (r"\boxed{7}, put into \boxed{}", "7"),
        (r"\boxed{12", None),
        ("no box", None),
    ],
)
def test_last_box(text, content):
    assert boxed(text) == content


NESTED = st.recursive(
    st.just("x"), lambda inner: st.lists(inner, max_size=3).map(lambda parts: f"{{y{''.join(parts)}}}")
)


@quick
@given(NESTED)
def test_braces_are_matched_to_any_depth(content):
    assert boxed(rf"a {{ b \boxed{{1}} \boxed{{{content}}} c }} }}") == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"12+30=42, \boxed{42}. Check: 7", "42"),
        ("the total is 1,234.50 dollars.", "1234.5"),
        ("x = -3.", "-3"),
        ("7-3", "3"),
        ("1, 2, 3", "3"),
        ("a quarter: 3/12", "1/4"),
        ("costs $15.", "15"),
        ("costs -$15", "-15"),
        (r"\boxed{-\frac{6}{4}}", "-3/2"),
        (r"12, but \boxed{unknown}", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_numeric_answer_of_a_text(text, answer):
    assert parse_numeric(text) == answer


def test_without_a_box_only_numeric_tasks_find_an_answer():
    assert parse_boxed("the answer is 5") is None
    assert parse_boxed(r"\boxed{\text{Paris}}") == "Paris"


def variants(value: int) -> list[str]:
    grouped, sign = f"{abs(value):,}", "-" if value < 0 else ""
    plain = [f"{value}", f" {value} ", f"{value}.", f"{value}.00", f"{value}%", f"**{value}**", f"{value * 3}/3"]
    grouped_too = [
        f"{sign}{grouped}",
        f"{sign}${grouped}",
        f"{sign}00{abs(value)}",
        f"{sign}{grouped.replace(',', '{,}')}",
    ]
    latex = [f"${value}$", rf"\({value}\)", rf"\text{{{value}}}", f"x = {value}", rf"{value}\%"]
    return plain + grouped_too + latex + [f"+{value}"] * (value > 0)


@quick
@given(st.integers(-(10**9), 10**9), st.data())
def test_spellings_of_a_number_agree(value, data):
    spelling = data.draw(st.sampled_from(variants(value)))
    assert canonical(spelling) == str(value)
    assert equivalent(spelling, str(value))
    assert equivalent(str(value), rf"\frac{{{2 * abs(value)}}}{{2}}") == (value >= 0)


@quick
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.data())
def test_different_numbers_differ(a, b, data):
    first, second = data.draw(st.sampled_from(variants(a))), data.draw(st.sampled_from(variants(b)))
    assert equivalent(first, second) == (a == b)


@quick
@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_compared_exactly(a, b):
    assert equivalent(str(a), str(b)) == (a == b)
    assert answers.number(canonical(str(a)) or "") == a


@quick
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**6), max_value=10**6))
def test_decimals_keep_their_value(value):
    assert answers.number(canonical(str(value)) or "") == Fraction(value)
    assert equivalent(str(value), str(Fraction(value)))


def test_negative_zero_and_repeating_decimals():
    assert canonical("-0.0") == canonical("-0") == "0"
    assert not equivalent("0.333333", "1/3")


@quick
@given(st.text(alphabet="0123456789+-.,$%/{}\\=* xab()", max_size=20))
def test_a_canonical_form_is_its_own(text):
    form = canonical(text)
    assert form is None or canonical(form) == form


@formulas
@given(st.sampled_from(FORMULAS), st.sampled_from(FORMULAS))
def test_equivalence_is_reflexive_and_symmetric(a, b):
    assert equivalent(a, a)
    assert equivalent(a, b) == equivalent(b, a)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("x+1", "1 + x", True),
        ("x+1", "x+2", False),
        ("2+3", "5", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\frac{x}{2}", "0.5x", True),
        ("(1,2)", "(2,1)", False),
        ("(1,2)", r"\left(\frac{2}{2}, 2.0\right)", True),
        ("(x+1,2)", "(1+x,2)", True),
        ("[1,2)", "(1,2)", False),
        (r"\left(-\infty,3\right]", r"(-\infty,3]", True),
        (r"(-\infty,3]", r"(-\infty,4]", False),
        ("(1,2)", "(1,2,3)", False),
        ("(1,2)", "1<x<2", True),  # math-verify sees this with the inequality as the right answer only
        (r"\text{Paris}", "paris", True),
        ("east", "seat", False),
        ("5)(", "6", False),
    ],
)
def test_formulas(a, b, same):
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same


HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "factorial": "10000000!",
    "parentheses": "(" * 400 + "1" + ")" * 400,
    "roots": r"\sqrt{" * 100 + "x" + "}" * 100,
    "power": "(x+y+z)^{1000}",
    "letters": "x" * 100_000,
    "digits": "9" * 100_000,
    "groups": "1," * 50_000,
    "boxes": r"\boxed{" * 14_000,
    "braces": "{" * 100_000,
    "wrappers": "-$" * 499,
    "surrogate": "\ud800+x",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_costs_little_and_equals_nothing(text, costs_less):
    equivalent("y+1", "1+y")  # the process is running

    def work():
        assert not equivalent(text, "x-1")
        assert not equivalent("x-1", text)
        parse_numeric(text), parse_boxed(text)

    # Under a second on an idle machine; another's load may stretch the wall time, not the work done here.
    started = time.perf_counter()
    assert costs_less(0.5, work)
    assert time.perf_counter() - started < 5
    assert equivalent("z+1", "1+z")


def test_the_grading_process_may_be_used_from_any_thread():
    results = {}

    def work(index):
        results[index] = [equivalent(f"t+{index}+{k}", f"{k}+t+{index}") for k in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {index: [True] * 3 for index in range(4)}


def test_threads_are_useful_only_after_many_formulas(monkeypatch):
    monkeypatch.setattr(grader, "PROCESSES", 3)
    mine = grader.Grader()
    monkeypatch.setattr(mine, "_free", queue.SimpleQueue())
    mine._free.put(types.SimpleNamespace(ask=lambda request, seconds: b"1"))
    threads = []
    for number in range(4 * grader.FORMULAS_PER_PROCESS):
        threads.append(mine.useful_threads())
        assert mine.same_formula(f"x+{number}", "x", 5)
    assert threads == sorted(threads)
    assert threads.count(1) == threads.count(2) == grader.FORMULAS_PER_PROCESS
    assert max(threads) == 3


def test_threads_use_different_processes_and_one_thread_only_one(monkeypatch):
    monkeypatch.setattr(grader, "PROCESSES", 2)
    mine = grader.Grader()
    running = lambda: [worker._process is not None for worker in mine._workers]
    try:
        assert all(mine.same_formula(f"x+{number}", f"{number}+x", 5) for number in range(3))
        assert running() == [True, False]
        both = threading.Barrier(2, timeout=60)

        def compare(n):
            both.wait()
            return mine.same_formula(f"x+{n}", f"{n + n % 2}+x", 5)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            found = list(pool.map(compare, range(10)))
        assert found == [n % 2 == 0 for n in range(10)]
        assert running() == [True, True]
    finally:
        mine.close()


def test_a_forked_process_can_compare_formulas_while_threads_of_its_parent_do():
    code = """
        import os
        from mft_jax.tasks import grader
        for _ in grader._GRADER._workers:
            grader._GRADER._free.get()  # as the threads would
        child = os.fork()
        if child == 0:
            os._exit(0 if grader.same_formula("x+1", "1+x", 5) else 1)
        print(os.waitpid(child, 0)[1])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.fixture
def mine():
    """A grader with processes of its own."""
    found = grader.Grader()
    yield found
    found.close()


def processes(group):
    """The running processes of a group; a dead one that nobody has waited for does not count."""
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = entry.read_text().rpartition(")")[2].split()[:3]
            if process_group == str(group) and state != "Z":
                yield int(entry.parent.name)


@pytest.mark.parametrize("killed", ["both", "child"])
def test_a_grading_process_that_was_killed_is_replaced(mine, killed):
    """Also where only the child was killed, between two requests: no answer may be taken for that to another request."""
    assert mine.same_formula("a+b", "b+a", 5)
    first = mine._workers[0]._process.pid
    (child,) = set(processes(first)) - {first}
    for process in (first, child) if killed == "both" else (child,):
        os.kill(process, signal.SIGKILL)
    for index in range(4):
        assert mine.same_formula(f"a+{index}", f"{index}+a", 5) != mine.same_formula(f"a+{index}", "a+9", 5)
    assert mine.timeouts() == 0


def test_comparisons_that_could_not_be_finished_are_counted_once_each(mine):
    """In any order, and from any thread."""
    assert not mine.same_formula("x+1", "x+2", 5)
    assert mine.timeouts() == 0
    pairs = [("9^{9^{9^{9}}}", "x-1"), ("x-1", "9^{9^{9^{9}}}"), ("(x+y+z)^{1000}", "x-1")]
    threads = [threading.Thread(target=mine.same_formula, args=(*pair, 0.1)) for pair in pairs * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert mine.timeouts() == 2


def test_a_comparison_that_crashes_its_process_or_takes_all_memory_is_counted_too(mine, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import importlib.util, os, types
spec = importlib.util.spec_from_file_location("worker", {str(grader._SCRIPT)!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
work = {{"crash": os.abort, "memory": lambda: bytearray(worker.MEMORY), "x+1": lambda: True}}
nothing = lambda: None
worker.load_engine = lambda: types.SimpleNamespace(
    install=nothing, warm_up=nothing, same_formula=lambda a, b: work[a]()
)
worker.main()
""")
    mine._workers = [Worker(script)]
    mine._free_all()
    assert [mine.same_formula(a, "1+x", 5) for a in ("x+1", "crash", "memory", "crash", "x+1")] == [
        True,
        *[False] * 3,
        True,
    ]
    assert mine.timeouts() == 2


def test_the_count_is_that_of_the_whole_process():
    before = grader.timeouts()
    answers._same_formula.cache_clear()
    for _ in range(2):
        assert not equivalent("(x+y+z)^{1000}", "u-1")
        answers._same_formula.cache_clear()
    assert grader.timeouts() == before + 1


def test_no_process_is_left_when_python_is_killed():
    code = """
        import os, signal
        from mft_jax.tasks import answers, grader
        answers.equivalent("5", "6.0")
        assert grader._GRADER._workers[0]._process is None, "numbers must not cost a process"
        answers.equivalent("x+1", "x+2")
        print(grader._GRADER._workers[0]._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    group = int(done.stdout)
    deadline = time.monotonic() + 20
    while any(processes(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(processes(group))
