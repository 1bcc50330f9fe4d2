//! Draws by inverting distribution functions: a table of quantiles with straight lines between. In: a distribution.
//! Out: its value at a probability, for one table look-up an image. Apart from `random`, which makes the probabilities.
//!
//! Only + − × ÷ √ and the pure-Rust `libm` are used, so every machine has the same tables.

/// Intervals of a table: the distribution function is off by less than half of one.
const KNOTS: usize = 4096;

/// The quantile function of one distribution.
#[derive(Clone, Debug)]
struct Quantiles(Vec<f64>);

impl Quantiles {
    /// The value at probability `p` in (0, 1).
    #[inline]
    fn at(&self, p: f64) -> f64 {
        let last = self.0.len() - 1;
        let x = p * last as f64;
        let i = (x as usize).min(last - 1);
        let (left, right) = (self.0[i], self.0[i + 1]);
        left + (right - left) * (x - i as f64)
    }
}

/// The distribution function of the standard normal.
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// A normal cut to an interval.
#[derive(Clone, Debug)]
pub struct TruncatedNormal(Quantiles);

impl TruncatedNormal {
    /// N(mean, std²) cut to [low, high]; all mass at the nearer end where the interval's own mass underflows.
    pub fn new(mean: f64, std: f64, low: f64, high: f64) -> Self {
        // Mirror an interval right of the mean to the left, where the distribution function keeps its precision.
        let mirrored = low > mean;
        let (a, b) = if mirrored { (2.0 * mean - high, 2.0 * mean - low) } else { (low, high) };
        let (pa, pb) = (normal_cdf((a - mean) / std), normal_cdf((b - mean) / std));
        let knot = |i: usize| {
            if pb - pa <= 0.0 {
                return b;
            }
            let p = pa + (pb - pa) * i as f64 / KNOTS as f64;
            let (mut left, mut right) = (a, b);
            for _ in 0..60 {
                let middle = 0.5 * (left + right);
                if normal_cdf((middle - mean) / std) < p {
                    left = middle;
                } else {
                    right = middle;
                }
            }
            0.5 * (left + right)
        };
        let mut knots: Vec<f64> = (0..=KNOTS).map(knot).collect();
        if mirrored {
            knots.iter_mut().for_each(|x| *x = 2.0 * mean - *x);
            knots.reverse();
        }
        Self(Quantiles(knots))
    }

    /// The value at probability `p` in (0, 1).
    #[inline]
    pub fn at(&self, p: f64) -> f64 {
        self.0.at(p)
    }
}

/// Beta distributions of one concentration α + β and of any mean between two: tables at a few means, and straight lines
/// between them, which keep the mean exact.
#[derive(Clone, Debug)]
pub struct Betas {
    low: f64,
    step: f64,
    levels: Vec<Quantiles>,
}

impl Betas {
    const LEVELS: usize = 17;

    /// Means from `low` to `high`, both in [0, 1).
    pub fn new(concentration: f64, low: f64, high: f64) -> Self {
        let levels = if high > low { Self::LEVELS } else { 1 };
        let step = if levels > 1 { (high - low) / (levels - 1) as f64 } else { 1.0 };
        let level = |i: usize| beta_quantiles(concentration, low + step * i as f64);
        Self { low, step, levels: (0..levels).map(level).collect() }
    }

    /// The value at probability `p` in (0, 1) of the distribution with this mean.
    #[inline]
    pub fn at(&self, mean: f64, p: f64) -> f64 {
        let x = ((mean - self.low) / self.step).clamp(0.0, (self.levels.len() - 1) as f64);
        let i = x as usize;
        let value = self.levels[i].at(p);
        match self.levels.get(i + 1) {
            Some(next) => value + (next.at(p) - value) * (x - i as f64),
            None => value,
        }
    }
}

/// Quantiles of Beta(α, β) with α = `concentration`·`mean`.
///
/// Left of ½ the density is integrated over t = x^α, right of it over s = (1 − x)^β: so it is finite at both ends.
fn beta_quantiles(concentration: f64, mean: f64) -> Quantiles {
    if mean <= 0.0 {
        return Quantiles(vec![0.0; KNOTS + 1]);
    }
    let (a, b) = (concentration * mean, concentration * (1.0 - mean));
    let (left, right) = (Half::new(a, b), Half::new(b, a));
    let mass = left.mass() + right.mass();
    let knot = |i: usize| {
        let p = mass * i as f64 / KNOTS as f64;
        if p <= left.mass() { left.at(p) } else { 1.0 - right.at(mass - p) }
    };
    Quantiles((0..=KNOTS).map(knot).collect())
}

/// Half a beta distribution: the integral of x^(a−1)·(1−x)^(b−1) from 0 to x, for x up to ½.
struct Half {
    power: f64,
    end: f64,
    sums: Vec<f64>,
}

impl Half {
    const NODES: usize = 1024;

    fn new(a: f64, b: f64) -> Self {
        let (power, end) = (1.0 / a, libm::pow(0.5, a));
        let step = end / Self::NODES as f64;
        let density = |t: f64| libm::pow(1.0 - libm::pow(t, power), b - 1.0) / a;
        let mut sums = Vec::with_capacity(Self::NODES + 1);
        let (mut sum, mut before) = (0.0, density(0.0));
        sums.push(sum);
        for i in 0..Self::NODES {
            // Simpson's rule.
            let t = step * i as f64;
            let (middle, after) = (density(t + 0.5 * step), density(t + step));
            sum += step / 6.0 * (before + 4.0 * middle + after);
            sums.push(sum);
            before = after;
        }
        Self { power, end, sums }
    }

    fn mass(&self) -> f64 {
        self.sums[Self::NODES]
    }

    /// The x up to which the integral is `sum`.
    fn at(&self, sum: f64) -> f64 {
        let i = self.sums.partition_point(|&s| s <= sum).clamp(1, Self::NODES) - 1;
        let part = (sum - self.sums[i]) / (self.sums[i + 1] - self.sums[i]);
        libm::pow(self.end * (i as f64 + part.min(1.0)) / Self::NODES as f64, self.power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_normal_follows_its_distribution() {
        for (mean, std, low, high) in [(-0.5, 1.0, -1.0, 1.0), (3.0, 0.5, -1.0, 1.0), (0.0, 1.0, -2.0, 2.0)] {
            let t = TruncatedNormal::new(mean, std, low, high);
            let cdf = |x: f64| {
                let at = |x: f64| normal_cdf((x - mean) / std);
                (at(x) - at(low)) / (at(high) - at(low))
            };
            for i in 1..1000 {
                let p = f64::from(i) / 1000.0;
                let x = t.at(p);
                assert!((low..=high).contains(&x));
                // Straight lines between knots: never off by more than half a knot.
                assert!((cdf(x) - p).abs() < 0.5 / 4096.0, "mean {mean}: {p} gives {x}");
            }
        }
        assert!((TruncatedNormal::new(40.0, 0.1, -1.0, 1.0).at(0.5) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn betas_have_the_mean_and_the_variance_of_the_paper() {
        // NaViT (arXiv 2307.06304), appendix A.4: variance 0.3·m·(1 − m) makes α + β = 7/3.
        let betas = Betas::new(7.0 / 3.0, 0.05, 0.95);
        for m in [0.05, 0.1, 0.33, 0.5, 0.625, 0.9, 0.95] {
            let n = 200_000;
            let draws = (0..n).map(|i| betas.at(m, (f64::from(i) + 0.5) / f64::from(n)));
            let (sum, squares) = draws.fold((0.0, 0.0), |(s, q), x| {
                assert!((0.0..=1.0).contains(&x));
                (s + x, q + x * x)
            });
            let mean = sum / f64::from(n);
            let variance = squares / f64::from(n) - mean * mean;
            assert!((mean - m).abs() < 1e-4, "mean {mean} for {m}");
            assert!((variance - 0.3 * m * (1.0 - m)).abs() < 2e-3, "variance {variance} for mean {m}");
        }
    }

    #[test]
    fn uniform_and_power_are_betas() {
        // Beta(1, 1) is uniform; Beta(2, 1) has the distribution function x².
        let (uniform, square) = (Betas::new(2.0, 0.5, 0.5), Betas::new(3.0, 2.0 / 3.0, 2.0 / 3.0));
        for i in 1..1000 {
            let p = f64::from(i) / 1000.0;
            assert!((uniform.at(0.5, p) - p).abs() < 1e-6);
            assert!((square.at(2.0 / 3.0, p).powi(2) - p).abs() < 0.5 / KNOTS as f64);
        }
        assert_eq!(Betas::new(7.0 / 3.0, 0.0, 0.5).at(0.0, 0.7), 0.0);
    }
}
