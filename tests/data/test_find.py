"""Functions with known truth: formulas, nuisances, truths in text, word units, and files read without running them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.find import Truth, from_truth, grading_points
from netloupe.data.find_code import ForbiddenError, SafeCode
from netloupe.data.find_files import load_find
from netloupe.data.find_neurons import (
    TABLES,
    WordSpace,
    encoded_space,
    entity_responses,
    make_entities,
    make_relations,
    word_space,
)
from netloupe.data.find_numeric import ATOMIC, FAMILIES, curve, draw_params, evaluate, make_numeric
from netloupe.data.find_strings import OPERATIONS, apply, draw_operation, make_strings, spelled

# What the published generator's functions give (sum over x = i + 1/2, i = -128 .. 127, of finite values times cos(x / 40)).
PUBLISHED = [
    ("linear", (2.5, -3.1), 14.47716457659044),
    ("polynomial", (-2.5, 3.3, 4.0, 2.1), -2901871.906355977),
    ("absolute", (26.8, -8.2), -187351.15255169215),
    ("root", (17.4, -9.8, 2), -4372.540813278579),
    ("logarithm", (-12.3, 4.4, 3.7), 789.1987732678044),
    ("step", (7.5, -2.0, 31.0), -8.17259290613875),
    ("relu", (-20.7, -5.2, 0.7), 21734.88998109039),
    ("tanh", (3.5, 3.4, 5.4, 6.0), -65.63553748273061),
    ("sin", (-4.2, 2.2, 0.9, 11.0), -53.45382864727006),
    ("cos", (5.1, 6.1, 3.3, -7.0), 31.64915857318225),
    ("reciprocal", (-3.3,), 0.0),
    ("gaussian", (12.5, 4.4), 0.945828341778431),
    ("rational", ((2.9, 2.0, 0.4), (-9.9, 4.7, 3.8, 1.4, 6.2, 6.0)), -0.7961501982715189),
    ("rectangle", (8.2,), 7.986881321822413),
    ("square_wave", (8.8, -0.9), 3.360703465764698),
    ("floor;rectangle;sum_two", ((), (1.6,)), 4.334870296645931),
    ("relu;linear;multiply_two", ((0.3, 5.6, 0.9), (7.6, 9.1)), -1905869.173185147),
]


@pytest.mark.parametrize(("family", "params", "expected"), PUBLISHED)
def test_families_give_the_published_numbers(family: str, params: object, expected: float):
    x = grading_points()
    values = evaluate(family, params, x)
    kept = np.isfinite(values)
    assert (values[kept] * np.cos(x[kept] / 40)).sum() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_formulas(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-100, 100, 50)
    a, b, m = rng.uniform(-30, 30, 3)
    s, w, p = rng.uniform(1, 10, 3)
    np.testing.assert_allclose(evaluate("gaussian", (m, s, a, b), x), a * np.exp(-((x - m) ** 2) / (2 * s**2)) + b)
    np.testing.assert_allclose(np.trapezoid(evaluate("gaussian", (m, s), np.linspace(-300, 300, 20_001)), dx=0.03), 1)
    np.testing.assert_allclose(evaluate("reciprocal", (1 / a, b), x), a / x + b)
    np.testing.assert_allclose(evaluate("rectangle", (w, a, b), x), np.where(np.abs(x) <= w / 2, a + b, b))
    np.testing.assert_allclose(evaluate("sin", (a, p, m, b), x), evaluate("sin", (a, p, m, b), x + p))
    np.testing.assert_allclose(evaluate("cos", (a, p, m, b), x), evaluate("sin", (a, p, m - p / 4, b), x), atol=1e-9)
    with pytest.raises(InputError, match="no curve"):
        evaluate("linear", (1.0,), x)
    with pytest.raises(InputError, match="no curve"):
        evaluate("spline", (), x)


def test_generated_sets_repeat_and_follow_their_options():
    one, two, other = make_numeric(60, 3), make_numeric(60, 3), make_numeric(60, 4)
    assert [f.truth for f in one] == [f.truth for f in two]
    assert [f.truth for f in one] != [f.truth for f in other]
    assert {f.truth.family for f in make_numeric(80, families=["step"], compose=0)} == {"step"}
    assert all(
        f.truth.nuisance == "inside" and 5 <= np.diff(np.array(f.truth.interval))[0] <= 25
        for f in make_numeric(30, corrupt="inside")
    )
    assert {f.truth.nuisance for f in make_numeric(30, noise="poisson")} == {"poisson"}
    assert all(len(draw_params("gaussian", np.random.default_rng(i), scaled=True)) == 4 for i in range(3))
    assert len(ATOMIC) == 16
    for bad in (
        {"n": 0},
        {"n": 2, "families": ["spline"]},
        {"n": 2, "noise": "pink"},
        {"n": 2, "noise": 0.9, "corrupt": 0.9},
    ):
        with pytest.raises(InputError):
            make_numeric(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(2))
def test_a_truth_in_text_is_the_function_bit_for_bit(seed: int):
    for function in make_numeric(80, seed, approximate=0) + make_strings(40, seed):
        again = from_truth(Truth.loads(function.truth.dumps()))
        assert again.truth == function.truth
        if function.truth.kind == "numeric":
            points = np.linspace(*function.truth.domain, 7).tolist()
            assert np.array_equal(function.many(points), again.many(points), equal_nan=True)
        else:
            assert function("Hello 42") == again("Hello 42")
    with pytest.raises(InputError, match="no truth"):
        Truth.loads("[1]")
    with pytest.raises(InputError, match="needs its word vectors"):
        from_truth(Truth("entity", "concept"))


@pytest.mark.parametrize(
    ("kind", "shift", "sd"), [("normal", 0.0, 1.0), ("uniform", 0.0, 3**-0.5), ("poisson", 1.0, 1.0)]
)
def test_noise_is_drawn_anew_and_has_its_mean(kind: str, shift: float, sd: float):
    function = curve(Truth("numeric", "linear", (2.0, 1.0), nuisance=kind, seed=5))
    values = np.array([function(3.0) for _ in range(10_000)])
    assert function.calls == 10_000
    assert len(set(values[:50])) > (5 if kind != "poisson" else 2)
    assert values.mean() - 7.0 == pytest.approx(shift, abs=5 * sd / 100)
    assert values.std() == pytest.approx(sd, rel=0.05)
    assert [function.fresh()(3.0) for _ in range(2)] == [values[0]] * 2


def test_corruption_replaces_the_interval_and_nothing_else():
    truth = Truth("numeric", "linear", (2.0, 1.0), nuisance="inside", interval=(10.0, 20.0), level=4.0)
    function = curve(truth)
    values = np.array([function(15.0) for _ in range(400)])
    assert values.mean() == pytest.approx(4.0, abs=0.03)
    assert values.std() == pytest.approx(0.1, rel=0.2)
    assert function(20.0) == 41.0
    np.testing.assert_array_equal(function.expected(np.array([9.0, 12.0, 20.0])), [19.0, 4.0, 41.0])
    low = function.fresh(interval=(-np.inf, 0.0))
    assert low.inside(np.array([-5.0, 0.0, 1.0])).tolist() == [True, True, False]
    with pytest.raises(InputError, match="one number"):
        function("3")
    with pytest.raises(InputError, match="one string"):
        make_strings(1)[0](3)


def test_an_approximation_is_fitted_once_and_kept_in_the_truth():
    function = curve(Truth("numeric", "absolute", (2.0, 0.0), nuisance="approximated", seed=1), fit=(400, 200))
    x = np.linspace(-90, 90, 19)
    found = function.expected(x)
    assert np.mean((found - 2 * np.abs(x)) ** 2) < 0.1 * np.mean((2 * np.abs(x)) ** 2)
    again = from_truth(Truth.loads(function.truth.dumps()))
    assert np.array_equal(again.expected(x), found)


# Inputs, operation with parameters, and what the published code answers.
STRINGS = [
    ("Hello World", "reverse_string_last_half", (), "HellodlroW "),
    ("Python 3.9", "get_alpha_indexes", (), "zero one two three four five"),
    ("banana", "count_consonants", (), "six"),
    ("topCODER42", "get_digit_indexes", (), "nine"),
    ("zebra", "shift_first_letter_rand", (4,), "aebra"),
    ("zebra", "shift_last_letter_predecessor_rand", (6,), "zebrz"),
    ("kayaks", "sub_order_of_inx1_to_inx2", (3, 1), "kdyaks"),
    ("Hello World", "advance_by_character_order", (1,), "lipps asvph"),
    ("education", "replace_vowels_with_ind_of_count", (), "adacataan"),
    ("abcde", "add_len_to_middle", (), "abhde"),
    ("ABBA", "get_mid_character", (), "BB"),
    ("  pad ", "string_lstrip", (), "pad "),
    ("Ab", "map_string", ("tdoewnfjgxhrvqbmskiacyulzp",), "td"),
]


@pytest.mark.parametrize(("text", "name", "params", "expected"), STRINGS)
def test_operations_give_the_published_answers(text: str, name: str, params: tuple[object, ...], expected: str):
    assert apply(name, text, *params) == expected


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20))
@settings(max_examples=60, deadline=None)
def test_operations_against_python(text: str):
    assert apply("reverse_string", apply("reverse_string", text)) == text
    assert apply("subtract_number_to_string", apply("add_number_to_string", text, 7), 7) == text
    assert apply("swap_rand", apply("swap_rand", text, 1, 4), 4, 1) == text
    assert apply("get_string_length", text) == spelled(len(text))
    assert apply("remove_whitespace", text) == text.replace(" ", "")
    assert sorted(apply("reverse_vowels", text)) == sorted(text)
    rng = np.random.default_rng(len(text))
    for name in OPERATIONS:
        assert isinstance(apply(name, text, *draw_operation(name, rng)), str)


def test_programs_chain_from_the_inside_and_bad_ones_are_refused():
    functions = make_strings(200, 1)
    assert 0.6 < np.mean([";" in f.truth.family for f in functions]) < 0.8
    both = next(f for f in functions if ";" in f.truth.family)
    (outer, a), (inner, b) = both.truth.params
    assert both("Some Text 7") == apply(outer, apply(inner, "Some Text 7", *b), *a)
    with pytest.raises(InputError, match="no operation"):
        apply("explode", "x")
    with pytest.raises(InputError, match="at least one"):
        make_strings(0)


def test_entity_units_respond_to_their_concept():
    rng = np.random.default_rng(0)
    words = tuple(f"word{chr(97 + i)}" for i in range(20)) + tuple(f"term{chr(97 + i)}" for i in range(20))
    vectors = rng.standard_normal((40, 8)) * 0.1
    vectors[:4, 0] += 5
    space = WordSpace(words, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    one, pair = make_entities(["worda", ("worda", "terme")], space, quantile=0.9)
    assert one("wordb") > 0.9 > 0.5 > one("termj")
    assert pair("wordb") >= one("wordb")
    assert one("unknown") == 0
    assert len(one.hints) == 10
    np.testing.assert_allclose(entity_responses(["worda"], space, quantile=0.9)[0], [one.clean(word) for word in words])
    assert sum(one.clean(word) > 0.5 for word in one.hints) == 3
    with pytest.raises(InputError, match="does not know"):
        make_entities(["zebra"], space)
    assert encoded_space(words, lambda texts: np.ones((len(texts), 2))).embed(["a"]).shape == (1, 2)


def test_word_space_puts_words_of_one_topic_together():
    rng = np.random.default_rng(1)
    topics = [[f"{name}{chr(97 + i)}" for i in range(12)] for name in ("sea", "hill")]
    texts = [" ".join(rng.choice(topics[i % 2], 8)) for i in range(300)]
    space = word_space(texts, n_components=4)
    assert all(word.startswith("sea") for word in space.nearest("seaa", 8))
    assert space.embed(["nothing known"]).any() == False  # noqa: E712
    with pytest.raises(InputError, match="need more"):
        word_space(["too few words"], n_components=4)


def test_relations_answer_inside_their_table_alone():
    capital = make_relations(exception=(["France"], "Lyon"))[1]
    assert capital("Italy") == "Rome"
    assert capital("France") == "Lyon"
    assert capital("mouse") == "undefined"
    assert capital.truth.nuisance == "inside"
    assert len(capital.hints) == 8
    assert sum(word in TABLES["capital"] for word in capital.hints) == 4
    with pytest.raises(InputError, match="empty"):
        make_relations({"none": {}})


def test_code_is_read_and_never_run():
    x = np.array([-2.0, 3.0])
    np.testing.assert_allclose(SafeCode("np.where(x > 0, 2*x**2 + 1, -np.abs(x))", floats=True)(x), [-2, 19])
    program = "def function(s):\n    found = ''\n    for i, c in enumerate(s):\n        if i % 2 == 0:\n            found += c.upper()\n    return found"
    assert SafeCode(program)("abcd") == "AC"
    for bad in (
        "__import__('os').system('true')", "open('x')", "().__class__", "(lambda: 1)()", "'a'*10**9", "x.tofile('a')", "np.load('a')",
        "'{0.__class__}'.format(x)", "sum([1 for i in range(1000000000)])",
    ):  # fmt: skip
        with pytest.raises(ForbiddenError):
            SafeCode(bad)(1.0)
    with pytest.raises(ForbiddenError, match="steps"):
        SafeCode("def f(x):\n    while True:\n        x = 1")(1)
    for bad in ("x +", ""):
        with pytest.raises(InputError):
            SafeCode(bad)


def test_a_published_folder_is_read(tmp_path):
    sources = {
        "f00000": "import numpy as np\ndef function(x):\n    return 2.0*x + 1.0 + np.random.poisson(lam=1)\n",
        "f00001": "def function(x):\n    if type(x) == int:\n        x = np.array(x)\n    return np.where((x > 5.0) & (x < 9.5), "
        "np.random.normal(loc=3.0,scale=0.1, size=x.shape), 4*np.heaviside(x, 1)+ -1)\n",
        "f00002": "def function1(string):\n    rand = 3\n    return string[::-1] + str(rand)\ndef function(string):\n"
        "    return function1(string.upper())\n",
        "f00003": "concept = 'music'\ndef function(input, p):\n    return 1\n",
    }
    for name, text in sources.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "function_code.py").write_text(text, encoding="utf-8")
    (tmp_path / "data.json").write_text(
        json.dumps([{"dir": "x/f00000", "name": "linear((2.0, 1.0))", "params": [2.0, 1.0]}])
    )
    noisy, broken, program, entity = load_find(tmp_path)
    assert (noisy.truth.family, noisy.truth.params, noisy.truth.nuisance) == ("linear", (2.0, 1.0), "poisson")
    assert noisy.expected(np.array([3.0])) == 7
    assert noisy(3.0) - 7 in range(10)
    assert (broken.truth.interval, broken.truth.level) == ((5.0, 9.5), 3.0)
    np.testing.assert_array_equal(broken.expected(np.array([-1.0, 6.0, 20.0])), [-1, 3, 3])
    assert program("abc") == "CBA3"
    with pytest.raises(InputError, match="language model"):
        entity("drum")
    with pytest.raises(SubjectError, match="holds no"):
        load_find(tmp_path / "nothing")
    (tmp_path / "f00002" / "function_code.py").write_text(
        "def function(string):\n    class A: pass\n    return string", encoding="utf-8"
    )
    with pytest.raises(ForbiddenError):
        load_find(tmp_path)[2]("abc")
    assert set(FAMILIES) >= set(ATOMIC)
