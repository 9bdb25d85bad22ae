"""Units: what people write becomes SI, what is ambiguous is refused, and what is shown reads back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.errors import InputError
from sextant.simulator.units import UNITS, dimension, parse, show


@pytest.mark.parametrize(
    ("text", "want", "value"),
    [
        ("4.8 TB/s", "bytes_per_s", 4.8e12),
        ("80 GiB", "bytes", 80 * 2**30),
        ("80 GB", "bytes", 80e9),
        ("400 Gbit/s", "bytes_per_s", 50e9),
        ("2 us", "s", 2e-6),
        ("2 \u00b5s", "s", 2e-6),
        ("2 \u03bcs", "s", 2e-6),
        ("3 ms", "s", 3e-3),
        ("1.5 h", "s", 5400.0),
        ("989 TFLOP/s", "flops_per_s", 989e12),
        ("989 TFLOPS", "flops_per_s", 989e12),
        ("2 TFLOPs", "flops", 2e12),
        ("700 W", "w", 700.0),
        ("7 pJ/B", "j_per_byte", 7e-12),
        ("3 mJ", "j", 3e-3),
        ("3 MJ", "j", 3e6),
        ("2 USD/h", "usd_per_h", 2.0),
        ("1.755 GHz", "hz", 1.755e9),
        ("1e9 rows/s", "rows_per_s", 1e9),
        ("50 %", "", 0.5),
        ("4096 tokens", "", 4096.0),
        ("1,000,000", "", 1e6),
        ("1_000", "", 1e3),
        (" 5e3GB ", "bytes", 5e12),
        (".5 s", "s", 0.5),
        ("-2 s", "s", -2.0),
        ("3.35e12", "bytes_per_s", 3.35e12),
    ],
)
def test_a_quantity_becomes_si(text: str, want: str, value: float) -> None:
    assert parse(text, want) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["5 Gb", "5 Gbps", "5 GBps", "5 Gib", "5 Gb/s", "5 kb", "5 Mib/s"])
def test_bits_or_bytes_is_refused_with_both_spellings(text: str) -> None:
    with pytest.raises(InputError, match=r"may mean bits or bytes.*write .*bit/s or .*B/s"):
        parse(text, "bytes_per_s")


@pytest.mark.parametrize(
    ("text", "want", "phrase"),
    [
        ("55 GB", "bytes_per_s", "expected bytes/s, got '55 GB', which is bytes; write it such as \"4.8 TB/s\""),
        ("128 GB", "", "expected a bare number, got '128 GB', which is bytes; write the number without a unit"),
        ("3 usec", "s", "unknown unit 'usec' in '3 usec'; did you mean 'us'"),
        ("many", "", "expected a number, got 'many'; write digits only"),
        ("", "s", "expected a number such as \"2 us\", got ''"),
        ("1,5 GB", "bytes", "expected a number such as \"80 GiB\", got '1,5 GB'"),
        ("1,00 GB", "bytes", "expected a number"),
        ("1000,000", "", "expected a number"),
        ("1.5.2 GB", "bytes", "expected a number"),
        ("1__0", "", "expected a number"),
        ("5 GB\n6 GB", "bytes", "expected a number"),
        ("nan", "", "expected a number"),
        ("inf s", "s", "expected a number"),
        ("1e999", "", "expected a finite number"),
        ("1e308 TB", "bytes", "expected a finite number"),
    ],
)
def test_what_is_no_quantity_is_refused(text: str, want: str, phrase: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, want)
    assert phrase in str(caught.value)


def test_a_long_text_is_refused_at_once_and_shown_short() -> None:
    with pytest.raises(InputError) as caught:
        parse("5 a" + " " * 500_000 + "b", "bytes")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("capacity_bytes", "bytes"),
        ("bandwidth_bytes_per_s", "bytes_per_s"),
        ("peak_flops_per_s", "flops_per_s"),
        ("rows_per_s", "rows_per_s"),
        ("energy_j_per_byte", "j_per_byte"),
        ("price_usd_per_h", "usd_per_h"),
        ("price_usd", "usd"),
        ("launch_s", "s"),
        ("power_w", "w"),
        ("n_sms", ""),
        ("n_tokens_per_s", ""),
        ("tokens_per_s", ""),
        ("tokens_per_s_per_device", ""),
        ("usd_per_million_tokens", ""),
        ("engram_fraction", ""),
        ("hash_sizes", ""),
        ("bytes", "bytes"),
    ],
)
def test_the_dimension_follows_from_the_end_of_the_name(field: str, expected: str) -> None:
    assert dimension(field) == expected


@pytest.mark.parametrize(
    ("value", "dim", "text"),
    [
        (3.35e12, "bytes_per_s", "3.35 TB/s"),
        (80e9, "bytes", "80 GB"),
        (999.6e9, "bytes", "999.6 GB"),
        (999.97e9, "bytes", "1 TB"),
        (2e-6, "s", "2 us"),
        (7200.0, "s", "7200 s"),
        (0.0, "s", "0 s"),
        (-5e9, "bytes", "-5 GB"),
        (61440, "", "61,440"),
        (0.25, "", "0.25"),
        (30000.0, "usd", "30,000 USD"),
        (2.5, "usd_per_h", "2.5 USD/h"),
        (math.inf, "rows_per_s", "inf rows/s"),
    ],
)
def test_a_value_is_shown_with_its_unit(value: float, dim: str, text: str) -> None:
    assert show(value, dim) == text


@given(
    value=st.floats(min_value=1e-9, max_value=1e17, allow_nan=False),
    dim=st.sampled_from(sorted({d for _, d in UNITS.values()})),
)
def test_what_is_shown_reads_back_to_the_digits_shown(value: float, dim: str) -> None:
    assert parse(show(value, dim), dim) == pytest.approx(value, rel=5.1e-4)


@given(st.text(max_size=40), st.sampled_from(["", "bytes", "s", "bytes_per_s"]))
def test_any_text_gives_a_finite_number_or_an_input_error(text: str, want: str) -> None:
    try:
        assert math.isfinite(parse(text, want))
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_every_unit_scales_and_is_refused_elsewhere(unit: str) -> None:
    factor, dim = UNITS[unit]
    assert parse(f"3 {unit}", dim) == pytest.approx(3 * factor, rel=1e-15)
    with pytest.raises(InputError, match="expected"):
        parse(f"3 {unit}", "hz" if dim != "hz" else "s")
