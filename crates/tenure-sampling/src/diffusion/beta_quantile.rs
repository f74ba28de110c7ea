//! Quantiles of the beta distribution.

/// The x in 0..=1 below which a beta distribution has the probability p. `alpha` and `beta` are
/// positive and moderate.
pub(crate) fn beta_quantile(p: f64, alpha: f64, beta: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    // Each turn halves the interval; 1100 would empty it down to the least denormal.
    for _ in 0..1100 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if probability(middle, alpha, beta) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function.
fn probability(x: f64, a: f64, b: f64) -> f64 {
    let front = (log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    // The fraction converges fast on this side of the mean; the other is its mirror.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * continued_fraction(x, a, b) / a
    } else {
        1.0 - front * continued_fraction(1.0 - x, b, a) / b
    }
}

/// Lentz's evaluation of the fraction in DLMF 8.17.22.
fn continued_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let held = |y: f64| if y.abs() < TINY { TINY } else { y };
    let mut c = 1.0;
    let mut d = 1.0 / held(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..10_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = value;
        for term in [even, odd] {
            d = 1.0 / held(1.0 + term * d);
            c = held(1.0 + term / c);
            value *= c * d;
        }
        if (value - before).abs() <= 1e-16 * value.abs() {
            break;
        }
    }
    value
}

/// Stirling's series above 16, reached by the recurrence.
fn log_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 16.0 {
        shift += x.ln();
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y * (1.0 / 1680.0 - y / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arcsine_distribution_has_a_closed_form() {
        for i in 0..=100 {
            let p = f64::from(i) / 100.0;
            let want = (std::f64::consts::FRAC_PI_2 * p).sin().powi(2);
            assert!((beta_quantile(p, 0.5, 0.5) - want).abs() < 1e-13, "{p}");
        }
    }

    #[test]
    fn so_have_powers() {
        for a in [0.3, 1.0, 2.5, 40.0] {
            for i in 1..100 {
                let p = f64::from(i) / 100.0;
                assert!((beta_quantile(p, a, 1.0) - p.powf(1.0 / a)).abs() < 1e-13, "{a} {p}");
                assert!((1.0 - beta_quantile(p, 1.0, a) - (1.0 - p).powf(1.0 / a)).abs() < 1e-13, "{a} {p}");
            }
        }
    }
}
