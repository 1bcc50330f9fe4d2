//! The filters of a PNG file undone. In: filtered rows, each behind the byte that names its filter. Out: the rows, tight. Apart,
//! since it is the one loop of PNG that no library at hand has in vectors: each pixel waits for the one before.
//!
//! So four rows are undone at once, each a pixel behind the row above it: in one step of the vector form four pixels wait for
//! the step before, not one. The predictors are those of the PNG specification, section 9.

/// Rows that are undone at once.
const AT_ONCE: usize = 4;

/// Undoes the filters of all rows.
///
/// `filtered` holds rows of 1 + width · `step` bytes, `out` at least as many of width · `step`; `step` is the bytes of a pixel.
/// None for a filter that there is not.
pub fn undo(fast: bool, step: usize, line: usize, filtered: &[u8], out: &mut [u8]) -> Option<()> {
    let height = filtered.len() / (line + 1);
    assert!(
        filtered.len() == height * (line + 1) && line.is_multiple_of(step) && line > 0 && out.len() >= height * line
    );
    let filter = |y: usize| filtered[y * (line + 1)];
    let mut y = 0;
    while y < height {
        let (before, here) = out.split_at_mut(y * line);
        // Above the first row all is zero.
        let above = if y == 0 { None } else { Some(&before[(y - 1) * line..]) };
        #[cfg(target_arch = "x86_64")]
        if fast && matches!(step, 3 | 4) && line >= 4 * step && height - y >= AT_ONCE && above.is_some() {
            let filters: [u8; AT_ONCE] = std::array::from_fn(|n| filter(y + n));
            // The mean and Paeth's predictor are what takes long.
            if filters.iter().filter(|&&f| matches!(f, 3 | 4)).count() > 1 && filters.iter().all(|&f| f <= 4) {
                let from = &filtered[y * (line + 1)..(y + AT_ONCE) * (line + 1)];
                let (above, to) = (above.unwrap_or_default(), &mut here[..AT_ONCE * line]);
                // SAFETY: `fast` is only true where AVX2 was found.
                unsafe {
                    match step {
                        3 => vectors::wave::<3>(filters, line, from, above, to),
                        _ => vectors::wave::<4>(filters, line, from, above, to),
                    }
                }
                for n in 0..AT_ONCE {
                    let (before, here) = to.split_at_mut(n * line);
                    let above = if n == 0 { above } else { &before[(n - 1) * line..] };
                    let filtered = &from[n * (line + 1) + 1..];
                    one(filters[n], step, line - step..line, filtered, Some(above), here)?;
                }
                y += AT_ONCE;
                continue;
            }
        }
        let row = &filtered[y * (line + 1) + 1..(y + 1) * (line + 1)];
        one(filter(y), step, 0..line, row, above, here)?;
        y += 1;
    }
    let _ = fast;
    Some(())
}

/// Undoes the filter of a part of one row, whole pixels, behind what is undone already.
fn one(
    filter: u8,
    step: usize,
    part: std::ops::Range<usize>,
    filtered: &[u8],
    above: Option<&[u8]>,
    row: &mut [u8],
) -> Option<()> {
    let up = |x: usize| above.map_or(0, |above| above[x]);
    match filter {
        0 => row[part.clone()].copy_from_slice(&filtered[part]),
        1 => {
            for x in part {
                row[x] = filtered[x].wrapping_add(if x < step { 0 } else { row[x - step] });
            }
        }
        2 => match above {
            None => row[part.clone()].copy_from_slice(&filtered[part]),
            Some(above) => {
                let from = filtered[part.clone()].iter().zip(&above[part.clone()]);
                row[part].iter_mut().zip(from).for_each(|(to, (&byte, &up))| *to = byte.wrapping_add(up));
            }
        },
        3 | 4 => {
            let predict = if filter == 3 { mean } else { paeth };
            for x in part {
                let (left, corner) = if x < step { (0, 0) } else { (row[x - step], up(x - step)) };
                row[x] = filtered[x].wrapping_add(predict(left, up(x), corner));
            }
        }
        _ => return None,
    }
    Some(())
}

fn mean(left: u8, up: u8, _: u8) -> u8 {
    ((u16::from(left) + u16::from(up)) / 2) as u8
}

/// Of the three the one nearest to left + up − corner, in that order where two are as near.
fn paeth(left: u8, up: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, up, corner].map(i16::from);
    let [to_a, to_b, to_c] = [(b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs()];
    if to_a <= to_b && to_a <= to_c {
        left
    } else if to_b <= to_c {
        up
    } else {
        corner
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::AT_ONCE;

    /// Four rows but for their last pixels; each of the filters is one of 0 to 4.
    #[target_feature(enable = "avx2")]
    pub fn wave<const STEP: usize>(filters: [u8; AT_ONCE], line: usize, filtered: &[u8], above: &[u8], out: &mut [u8]) {
        assert!(matches!(STEP, 3 | 4) && line >= 4 * STEP);
        assert!(filtered.len() >= AT_ONCE * (line + 1) && above.len() >= line && out.len() >= AT_ONCE * line);
        let pixels = line / STEP - 1;
        // All ones in the rows of a filter.
        let only = |filter: u8| {
            let [a, b, c, d] = filters.map(|of| if of == filter { -1 } else { 0 });
            _mm256_setr_epi64x(a, b, c, d)
        };
        let (only_left, only_up, only_mean, only_paeth) = (only(1), only(2), only(3), only(4));
        let zero = _mm256_setzero_si256();
        let (mut left, mut corner) = (zero, zero);
        let (from, up_from, to) = (filtered.as_ptr(), above.as_ptr(), out.as_mut_ptr());
        // In step n row r is at pixel n − r.
        for n in 0..pixels + AT_ONCE - 1 {
            let there = |row: usize| n >= row && n - row < pixels;
            let byte = |row: usize| {
                if !there(row) {
                    return 0;
                }
                // SAFETY: four bytes of a row whose last pixel is not among these, so the fourth is the row's too.
                unsafe { from.add(row * (line + 1) + 1 + (n - row) * STEP).cast::<i32>().read_unaligned() }
            };
            let raw = _mm256_cvtepu8_epi16(_mm_setr_epi32(byte(0), byte(1), byte(2), byte(3)));
            let first = if there(0) {
                // SAFETY: as for the rows.
                unsafe { up_from.add(n * STEP).cast::<i32>().read_unaligned() }
            } else {
                0
            };
            let first = _mm256_zextsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(first)));
            // Above each row what the row above it was in the step before.
            let up = _mm256_blend_epi32::<0b0000_0011>(_mm256_permute4x64_epi64::<0b10_01_00_00>(left), first);
            let (right, down) = (_mm256_sub_epi16(left, corner), _mm256_sub_epi16(up, corner));
            let (to_left, to_up) = (_mm256_abs_epi16(down), _mm256_abs_epi16(right));
            let to_corner = _mm256_abs_epi16(_mm256_add_epi16(right, down));
            let least = _mm256_min_epi16(_mm256_min_epi16(to_left, to_up), to_corner);
            let nearest = _mm256_blendv_epi8(corner, up, _mm256_cmpeq_epi16(least, to_up));
            let nearest = _mm256_blendv_epi8(nearest, left, _mm256_cmpeq_epi16(least, to_left));
            let mean = _mm256_srli_epi16::<1>(_mm256_add_epi16(left, up));
            let others = _mm256_or_si256(
                _mm256_or_si256(_mm256_and_si256(only_left, left), _mm256_and_si256(only_up, up)),
                _mm256_and_si256(only_mean, mean),
            );
            let by = _mm256_or_si256(_mm256_and_si256(only_paeth, nearest), others);
            // Bytes in halves of 16 bits.
            left = _mm256_and_si256(_mm256_add_epi16(raw, by), _mm256_set1_epi16(255));
            if n + 1 < AT_ONCE {
                // Rows that have not begun stay zero.
                let begun = [n >= 1, n >= 2].map(|begun| if begun { -1 } else { 0 });
                left = _mm256_and_si256(left, _mm256_setr_epi64x(-1, begun[0], begun[1], 0));
            }
            corner = up;
            let bytes = _mm256_packus_epi16(left, left);
            let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            let rows = [
                _mm_cvtsi128_si32(low),
                _mm_extract_epi32::<1>(low),
                _mm_cvtsi128_si32(high),
                _mm_extract_epi32::<1>(high),
            ];
            for (row, value) in rows.into_iter().enumerate() {
                if there(row) {
                    // SAFETY: as above; of three bytes a pixel the fourth is the next pixel's, which is written later.
                    unsafe { to.add(row * line + (n - row) * STEP).cast::<i32>().write_unaligned(value) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_forms_undo_what_the_filters_did(
            filters in proptest::collection::vec(0u8..5, 1..12), step in 1usize..9, pixels in 1usize..30, seed: u64,
        ) {
            let mut state = seed;
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Small differences too.
                if state >> 63 == 0 { (state >> 40) as u8 } else { 100 + (state >> 60) as u8 }
            };
            let line = step * pixels;
            let rows: Vec<Vec<u8>> = filters.iter().map(|_| (0..line).map(|_| byte()).collect()).collect();
            let mut filtered = Vec::new();
            for (y, &filter) in filters.iter().enumerate() {
                filtered.push(filter);
                let at = |y: Option<usize>, x: Option<usize>| y.and_then(|y| x.map(|x| rows[y][x])).unwrap_or(0);
                for (x, byte) in rows[y].iter().enumerate() {
                    let (before, above) = (x.checked_sub(step), y.checked_sub(1));
                    let (left, up, corner) = (at(Some(y), before), at(above, Some(x)), at(above, before));
                    let by = [0, left, up, mean(left, up, corner), paeth(left, up, corner)][usize::from(filter)];
                    filtered.push(byte.wrapping_sub(by));
                }
            }
            for fast in [false, crate::pixels::kernels::fast()] {
                let mut found = vec![0xA5; rows.len() * line + 3];
                prop_assert_eq!(undo(fast, step, line, &filtered, &mut found), Some(()));
                prop_assert_eq!(&found[..rows.len() * line], &rows.concat());
                prop_assert_eq!(&found[rows.len() * line..], &[0xA5; 3]);
            }
        }
    }

    #[test]
    fn other_filters_are_none() {
        assert_eq!(undo(false, 1, 1, &[5, 0], &mut [0]), None);
        assert_eq!(undo(true, 3, 12, &[[4].repeat(13), [4].repeat(13), [5].repeat(13)].concat(), &mut [0; 36]), None);
    }
}
