//! Weights of antialiased resampling along one axis. In: a span of source pixels and a number of target pixels. Out:
//! for each target pixel, the first source pixel it sees and its weights, in 14-bit fixed point that sums exactly to
//! one.
//!
//! The filters, their widening by the scale, and the window of each target pixel are those of Pillow's `Image.resize`.

/// Bits after the point.
pub const BITS: u32 = 14;
/// Target pixels are padded, with weights of zero, to a multiple of this.
pub const GROUP: usize = 16;

/// `[render] filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Catmull-Rom (a = −0.5).
    #[default]
    Bicubic,
    /// Triangle.
    Bilinear,
    /// Mean over the pixel's footprint (Pillow's box).
    Area,
    /// Lanczos with three lobes.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
            Self::Area => 0.5,
            Self::Lanczos => 3.0,
        }
    }

    /// Values at `start`, `start + step`, …, one for each place in `out`. A loop per filter, so that it can be
    /// vectorised.
    fn sample(self, start: f64, step: f64, out: &mut [f64]) {
        fn each(start: f64, step: f64, out: &mut [f64], f: impl Fn(f64) -> f64) {
            for (n, to) in out.iter_mut().enumerate() {
                *to = f(start + n as f64 * step);
            }
        }
        match self {
            Self::Bicubic => each(start, step, out, |x| {
                let d = x.abs();
                let near = (1.5 * d - 2.5) * d * d + 1.0;
                let far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0;
                let value = if d < 1.0 { near } else { far };
                if d < 2.0 { value } else { 0.0 }
            }),
            Self::Bilinear => each(start, step, out, |x| (1.0 - x.abs()).max(0.0)),
            Self::Area => each(start, step, out, |x| if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }),
            Self::Lanczos => {
                each(start, step, out, |x| if x.abs() < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 });
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    libm::sin(x) / x
}

/// One axis: `from` to `to` of `source` pixels, onto `target` pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Axis {
    /// Pixels that exist.
    pub source: usize,
    /// Start of the span.
    pub from: f64,
    /// End of the span.
    pub to: f64,
    /// Pixels wanted.
    pub target: usize,
    /// Filter.
    pub filter: Filter,
    /// Whether windows begin at even pixels and hold an even number of them, with weights of zero where they would not.
    pub even: bool,
}

/// Weights along one axis; computed again only for another axis.
#[derive(Default)]
pub struct Taps {
    axis: Axis,
    /// First source pixel of each target pixel.
    pub starts: Vec<u32>,
    /// Weights of each target pixel, `width` apiece.
    pub weights: Vec<i16>,
    /// Weights per target pixel, those of zero included.
    pub width: usize,
    /// Weights per target pixel that may differ from zero.
    pub used: usize,
    /// Source pixels seen by any target pixel.
    pub span: (usize, usize),
    exact: Vec<f64>,
}

impl Taps {
    /// Makes these the weights of `axis`.
    pub fn set(&mut self, axis: Axis) {
        if self.axis == axis && !self.starts.is_empty() {
            return;
        }
        self.axis = axis;
        let Axis { source, from, to, target, filter, even } = axis;
        let scale = (to - from) / target as f64;
        let widened = scale.max(1.0);
        let (support, narrow) = (filter.support() * widened, 1.0 / widened);
        let most = (support.ceil() as usize * 2 + 1).min(source);
        let unit = if even { 2 } else { 1 };
        self.width = (most + unit - 1).next_multiple_of(unit);
        self.used = 1;
        self.span = (source, 0);
        if self.exact.len() < most {
            self.exact.resize(most, 0.0);
        }
        let padded = target.next_multiple_of(GROUP);
        self.starts.clear();
        self.starts.resize(padded, 0);
        self.weights.clear();
        self.weights.resize(padded * self.width, 0);
        for i in 0..target {
            let centre = from + (i as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as usize).min(source - 1);
            let last = ((centre + support + 0.5) as usize).clamp(first + 1, source).min(first + most);
            let exact = &mut self.exact[..last - first];
            filter.sample((first as f64 - centre + 0.5) * narrow, narrow, exact);
            let begin = exact.iter().position(|&w| w != 0.0).unwrap_or(0);
            let end = exact.iter().rposition(|&w| w != 0.0).map_or(begin + 1, |n| n + 1);
            let seen = &exact[begin..end];
            let sum: f64 = seen.iter().sum();
            let factor = f64::from(1 << BITS) / if sum == 0.0 { 1.0 } else { sum };
            // Pixels before the first one that counts.
            let lead = (first + begin) % unit;
            let to = &mut self.weights[i * self.width + lead..][..seen.len()];
            let (mut left, mut heaviest) = (1 << BITS, 0);
            for (n, (to, &w)) in to.iter_mut().zip(seen).enumerate() {
                // Rounds to nearest; `f64::round` is a call where the target lacks SSE 4.1.
                *to = (w * factor + 0.5f64.copysign(w)) as i16;
                left -= i32::from(*to);
                if w > seen[heaviest] {
                    heaviest = n;
                }
            }
            // What rounding lost goes to the heaviest, so that a flat image stays flat.
            to[heaviest] = (i32::from(to[heaviest]) + left) as i16;
            let start = first + begin - lead;
            self.starts[i] = start as u32;
            self.used = self.used.max((lead + seen.len()).next_multiple_of(unit));
            self.span = (self.span.0.min(start), self.span.1.max(first + end));
        }
        // A start keeps its whole window inside the span plus `width`.
        self.starts[target..].fill(self.span.0 as u32);
    }

    /// The weights of target pixel `i` that may differ from zero.
    #[inline]
    pub fn of(&self, i: usize) -> &[i16] {
        &self.weights[i * self.width..][..self.used]
    }
}
