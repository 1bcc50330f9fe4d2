//! JPEG files of any style, through libjpeg-turbo. In: how a file is written. Out: its bytes.

use turbojpeg_sys as tj;

/// How a JPEG file is written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub width: usize,
    pub height: usize,
    pub quality: i32,
    pub sampling: tj::TJSAMP,
    /// MCUs between restart markers, 0 for none.
    pub restart: i32,
    pub optimised: bool,
    pub progressive: bool,
    /// How far a pixel may be from the smooth pattern.
    pub noise: u32,
    pub seed: u64,
}

impl Default for Style {
    fn default() -> Self {
        let sampling = tj::TJSAMP_TJSAMP_420;
        Self {
            width: 61,
            height: 45,
            quality: 90,
            sampling,
            restart: 0,
            optimised: false,
            progressive: false,
            noise: 0,
            seed: 0,
        }
    }
}

/// A JPEG of a smooth pattern with noise.
pub fn encode(style: &Style) -> Vec<u8> {
    let (width, height, seed) = (style.width, style.height, style.seed as usize);
    let mut state = style.seed;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if style.noise == 0 { 0 } else { (state >> 40) as usize % style.noise as usize }
    };
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|i| {
            let (x, y) = (i % width, i / width);
            let seed = seed % 1000;
            [x * 3 + seed, y * 5 + seed * 7, (x + y) * 2 + seed * 31].map(|v| ((v + noise()) % 256) as u8)
        })
        .collect();
    let (mut out, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the pixels have the size that is passed; the buffer is allocated by the library and freed below.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32);
        for (name, value) in [
            (tj::TJPARAM_TJPARAM_QUALITY, style.quality),
            (tj::TJPARAM_TJPARAM_SUBSAMP, style.sampling),
            (tj::TJPARAM_TJPARAM_RESTARTBLOCKS, style.restart),
            (tj::TJPARAM_TJPARAM_OPTIMIZE, i32::from(style.optimised)),
            (tj::TJPARAM_TJPARAM_PROGRESSIVE, i32::from(style.progressive)),
        ] {
            assert_eq!(tj::tj3Set(handle, name as i32, value), 0);
        }
        let format = tj::TJPF_TJPF_RGB;
        let code =
            tj::tj3Compress8(handle, pixels.as_ptr(), width as i32, 0, height as i32, format, &mut out, &mut size);
        assert_eq!(code, 0);
        let bytes = std::slice::from_raw_parts(out, size as usize).to_vec();
        tj::tj3Free(out.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}
