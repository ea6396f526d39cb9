//! Kubernetes quantities: `100Gi`, `500m`, `1.5`, `2e3`.

use std::fmt;

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAQuantity(pub String);

impl fmt::Display for NotAQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a Kubernetes quantity", self.0)
    }
}

impl std::error::Error for NotAQuantity {}

/// Bytes (or CPUs, pods, …) of a quantity, rounded up to a whole one, as Kubernetes does. More than `i64::MAX` is `i64::MAX`.
///
/// # Errors
/// When `text` is no quantity.
pub fn units(text: &str) -> Result<i64, NotAQuantity> {
    scaled(text, 1)
}

/// Thousandths of a quantity, rounded up: `500m` is 500, `2` is 2000.
///
/// # Errors
/// When `text` is no quantity.
pub fn thousandths(text: &str) -> Result<i64, NotAQuantity> {
    scaled(text, 1000)
}

/// `text` × `scale`, rounded away from zero.
fn scaled(text: &str, scale: i128) -> Result<i64, NotAQuantity> {
    exact(text)
        .map(|(numerator, denominator)| {
            let value = numerator.saturating_mul(scale);
            let whole = value / denominator;
            let rest = if value % denominator == 0 { 0 } else { value.signum() };
            i64::try_from(whole.saturating_add(rest)).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
        })
        .ok_or_else(|| NotAQuantity(text.to_owned()))
}

/// A quantity as a fraction. Numbers beyond 128 bits saturate: far above anything that is asked of Kubernetes.
fn exact(text: &str) -> Option<(i128, i128)> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    let mantissa: i128 = digits.parse().unwrap_or(i128::MAX);
    let shift = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (multiply, divide) = factor(suffix)?;
    Some((mantissa.saturating_mul(multiply).saturating_mul(sign), shift.checked_mul(divide)?))
}

/// What a suffix multiplies and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power| Some((1_i128 << (10 * power), 1));
    let decimal = |power| Some((10_i128.pow(power), 1));
    let small = |power| Some((1, 10_i128.pow(power)));
    match suffix {
        "" => Some((1, 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => small(9),
        "u" => small(6),
        "m" => small(3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.abs() <= 18)?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("128974848", 128_974_848),
            ("100Gi", 100 << 30),
            ("1.5Gi", 1536 << 20),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("123Mi", 123 << 20),
            (".5Ki", 512),
            ("5.", 5),
            ("100m", 1),
            ("-100m", -1),
            ("+2", 2),
            ("1500m", 2),
            ("20E", i64::MAX),
            ("99999999999999999999999999999999999999999999", i64::MAX),
        ] {
            assert_eq!(units(text), Ok(bytes), "{text}");
        }
        assert_eq!(thousandths("500m"), Ok(500));
        assert_eq!(thousandths("1.5"), Ok(1500));
        assert_eq!(thousandths("1u"), Ok(1));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", ".", "Gi", "10 Gi", "10GB", "10gi", "1.2.3", "ten", "1e", "1e99", "--1", "0x10"] {
            assert_eq!(units(text), Err(NotAQuantity(text.to_owned())), "{text}");
        }
    }
}
