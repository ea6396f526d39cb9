//! Kubernetes quantities as numbers.

/// A quantity in billionths, exact for what Kubernetes accepts; `None` when it is not one.
#[must_use]
pub fn nanos(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 10_i128.pow(12),
        "M" => 10_i128.pow(15),
        "G" => 10_i128.pow(18),
        "T" => 10_i128.pow(21),
        "P" => 10_i128.pow(24),
        "E" => 10_i128.pow(27),
        "Ki" => 1_000_000_000 << 10,
        "Mi" => 1_000_000_000 << 20,
        "Gi" => 1_000_000_000 << 30,
        "Ti" => 1_000_000_000 << 40,
        "Pi" => 1_000_000_000 << 50,
        "Ei" => 1_000_000_000 << 60,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            return scaled(number, 10_i128.checked_pow(u32::try_from(power.checked_add(9)?).ok()?)?);
        }
    };
    scaled(number, factor)
}

/// A decimal number times a factor.
fn scaled(number: &str, factor: i128) -> Option<i128> {
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 || fraction.len() > 15 {
        return None;
    }
    let all_digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.checked_mul(factor)?;
    if !fraction.is_empty() {
        let part: i128 = fraction.parse().ok()?;
        let divisor = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        value = value.checked_add(part.checked_mul(factor)? / divisor)?;
    }
    Some(if negative { -value } else { value })
}

/// A quantity of bytes, rounded down; `None` when it is not one, or negative.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    u64::try_from(nanos(text)? / 1_000_000_000).ok()
}

/// A quantity of CPU in thousandths.
#[must_use]
pub fn millis(text: &str) -> Option<u64> {
    u64::try_from(nanos(text)? / 1_000_000).ok()
}

/// Whether two texts are the same quantity: the API server writes `1000m` as `1`.
#[must_use]
pub fn same(a: &str, b: &str) -> bool {
    a == b || matches!((nanos(a), nanos(b)), (Some(x), Some(y)) if x == y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_accepts() {
        assert_eq!(bytes("100Gi"), Some(100 << 30));
        assert_eq!(bytes("1.5Gi"), Some(3 << 29));
        assert_eq!(bytes("1e3"), Some(1000));
        assert_eq!(bytes("2E"), Some(2_000_000_000_000_000_000));
        assert_eq!(bytes("0.5"), Some(0));
        assert_eq!(millis("500m"), Some(500));
        assert_eq!(millis("2"), Some(2000));
        assert_eq!(millis(".5"), Some(500));
        for bad in ["", "Gi", "1 Gi", "1gi", "ten", "1.2.3", "--1", "1e", "99999999999999999999999Gi"] {
            assert_eq!(nanos(bad), None, "{bad}");
        }
        assert_eq!(bytes("-1Gi"), None);
    }

    #[test]
    fn sameness_is_by_value() {
        assert!(same("1000m", "1"));
        assert!(same("0.5", "500m"));
        assert!(same("1Gi", "1024Mi"));
        assert!(!same("1G", "1Gi"));
        assert!(!same("x", "y"));
    }
}
