//! How Y, U and V mean colours. In: shares of red and blue in Y, and a range. Out: factors in fixed point. Apart from the loop that
//! applies them, since an image knows which it has.

/// How Y, U and V become R, G and B in a file that is not JFIF's: factors in 14 bits after the point. That of U for blue
/// may be beyond 2, so it stands here less 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub(super) black: i16,
    pub(super) y: i16,
    pub(super) r_v: i16,
    pub(super) g_u: i16,
    pub(super) g_v: i16,
    pub(super) b_u: i16,
}

impl Matrix {
    /// BT.601's, where 16 is black and 235 white: libwebp's factors.
    pub const VIDEO: Self = Self { black: 16, y: 19_077, r_v: 26_149, g_u: -6_419, g_v: -13_320, b_u: 16_666 };
    /// BT.709's, from 0 to 255.
    pub const BT709: Self = Self::of(0.2126, 0.0722, false);
    /// BT.709's, where 16 is black and 235 white.
    pub const BT709_VIDEO: Self = Self::of(0.2126, 0.0722, true);
    /// BT.2020's, from 0 to 255.
    pub const BT2020: Self = Self::of(0.2627, 0.0593, false);
    /// BT.2020's, where 16 is black and 235 white.
    pub const BT2020_VIDEO: Self = Self::of(0.2627, 0.0593, true);

    /// By the shares of red and blue in Y.
    const fn of(red: f64, blue: f64, video: bool) -> Self {
        const fn fixed(factor: f64) -> i16 {
            (factor * 16384.0 + if factor < 0.0 { -0.5 } else { 0.5 }) as i16
        }
        let (luma, chroma) = if video { (255.0 / 219.0, 255.0 / 112.0) } else { (1.0, 2.0) };
        let (r, b, green) = (chroma * (1.0 - red), chroma * (1.0 - blue), 1.0 - red - blue);
        Self {
            black: if video { 16 } else { 0 },
            y: fixed(luma),
            r_v: fixed(r),
            g_u: fixed(-b * blue / green),
            g_v: fixed(-r * red / green),
            b_u: fixed(b - 1.0),
        }
    }
}
