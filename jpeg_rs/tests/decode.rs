//! This decoder beside libjpeg-turbo: each plain file gives the same planes, in both forms and at every scale; and
//! whatever the bytes, both forms agree.

#[path = "common/encode.rs"]
mod encode;
#[path = "common/scans.rs"]
mod scans;

use encode::{Style, encode};
use navit_jpeg::{Decoder, Header, Picture};
use proptest::prelude::*;
use turbojpeg_sys as tj;

const SAMPLINGS: [tj::TJSAMP; 7] = [
    tj::TJSAMP_TJSAMP_444,
    tj::TJSAMP_TJSAMP_422,
    tj::TJSAMP_TJSAMP_420,
    tj::TJSAMP_TJSAMP_GRAY,
    tj::TJSAMP_TJSAMP_440,
    tj::TJSAMP_TJSAMP_411,
    tj::TJSAMP_TJSAMP_441,
];

prop_compose! {
    fn style()(
        width in 1usize..150, height in 1usize..120, quality in 1i32..=100, sampling in 0usize..7,
        restart in prop_oneof![2 => Just(0i32), 1 => 1i32..12], optimised: bool, progressive: bool, noise in 0u32..256,
        seed: u64,
    ) -> Style {
        Style { width, height, quality, sampling: SAMPLINGS[sampling], restart, optimised, progressive, noise, seed }
    }
}

prop_compose! {
    fn script()(
        width in 1usize..90, height in 1usize..70, seed: u64,
        sampling in prop::sample::select(vec![
            vec![(1, 1)], vec![(1, 1); 3], vec![(2, 1), (1, 1), (1, 1)], vec![(1, 2), (1, 1), (1, 1)],
            vec![(2, 2), (1, 1), (1, 1)], vec![(4, 1), (1, 1), (1, 1)], vec![(1, 4), (1, 1), (1, 1)],
        ]),
    ) -> scans::Script {
        scans::Script { width, height, sampling, seed }
    }
}

/// The samples of each plane that belong to the image.
type Planes = Vec<(u32, u32, Vec<u8>)>;

fn shown(picture: &Picture, data: &[u8]) -> Planes {
    let row = |p: &navit_jpeg::Plane, y: usize| data[p.start + y * p.stride..][..p.width as usize].to_vec();
    let planes = picture.planes[..picture.count].iter();
    planes.map(|p| (p.width, p.height, (0..p.height as usize).flat_map(|y| row(p, y)).collect())).collect()
}

/// What both forms make of a file; they must agree.
fn ours(data: &[u8], shrink: u32) -> Option<Planes> {
    let header = Header::of(data)?;
    let [fast, plain] = [Decoder::default(), Decoder::new(false)].map(|mut decoder| {
        // Longer and dirty, as a buffer that is used again.
        let mut out = vec![0xA5; 1000];
        decoder.decode(&header, shrink, &mut out).map(|picture| shown(&picture, &out))
    });
    assert_eq!(fast, plain);
    fast
}

/// The planes that libjpeg-turbo gives.
fn theirs(data: &[u8], shrink: u32) -> Planes {
    // SAFETY: the handle is alive until it is destroyed, the slice is as long as is said, and each plane as the library
    // asks.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as i32);
        assert_eq!(tj::tj3DecompressHeader(handle, data.as_ptr(), data.len() as _), 0);
        assert_eq!(tj::tj3SetScalingFactor(handle, tj::tjscalingfactor { num: 1, denom: shrink as i32 }), 0);
        let get = |name: tj::TJPARAM| tj::tj3Get(handle, name as i32);
        let (width, height) = (get(tj::TJPARAM_TJPARAM_JPEGWIDTH), get(tj::TJPARAM_TJPARAM_JPEGHEIGHT));
        let [width, height] = [width, height].map(|side| (side as u32).div_ceil(shrink) as i32);
        let sampling = get(tj::TJPARAM_TJPARAM_SUBSAMP);
        let count = if sampling == tj::TJSAMP_TJSAMP_GRAY { 1 } else { 3 };
        let mut planes: Planes = (0..count)
            .map(|c| {
                let (w, h) = (tj::tj3YUVPlaneWidth(c, width, sampling), tj::tj3YUVPlaneHeight(c, height, sampling));
                (w as u32, h as u32, vec![0; (w * h) as usize])
            })
            .collect();
        let mut to = [std::ptr::null_mut(); 3];
        for (to, plane) in to.iter_mut().zip(&mut planes) {
            *to = plane.2.as_mut_ptr();
        }
        let code = tj::tj3DecompressToYUVPlanes8(
            handle,
            data.as_ptr(),
            data.len() as _,
            to.as_mut_ptr(),
            std::ptr::null_mut(),
        );
        assert_eq!(code, 0);
        tj::tj3Destroy(handle);
        // Planes there are padded to whole groups of chroma samples; the image's own part is compared.
        planes
    }
}

fn cut(planes: &Planes, sizes: &Planes) -> Planes {
    let of = |(w, h, data): &(u32, u32, Vec<u8>), &(to_w, to_h, _): &(u32, u32, Vec<u8>)| {
        assert!(to_w <= *w && to_h <= *h);
        (to_w, to_h, (0..to_h).flat_map(|y| data[(y * w) as usize..][..to_w as usize].to_vec()).collect())
    };
    planes.iter().zip(sizes).map(|(plane, size)| of(plane, size)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn plain_files_give_libjpeg_turbos_samples(style in style()) {
        let data = encode(&style);
        for shrink in [1, 2, 4, 8] {
            let ours = ours(&data, shrink).expect("a plain file");
            prop_assert_eq!(&cut(&theirs(&data, shrink), &ours), &ours);
        }
    }

    #[test]
    fn any_script_of_scans_gives_libjpeg_turbos_samples(script in script()) {
        let (data, starts) = scans::encode(&script);
        for shrink in [1, 2, 4, 8] {
            let ours = ours(&data, shrink).expect("a whole file");
            prop_assert_eq!(&cut(&theirs(&data, shrink), &ours), &ours);
        }
        // Without its last scan, which the other decoder smooths.
        let short = [&data[..starts[starts.len() - 1]], &[0xFF, 0xD9]].concat();
        prop_assert_eq!(ours(&short, 1), None);
    }

    #[test]
    fn files_of_other_kinds_give_nothing(style in style(), code in prop::sample::select(vec![0xC3u8, 0xC5, 0xC9, 0xCA])) {
        let mut data = encode(&style);
        let mut at = 2;
        while !matches!(data[at + 1], 0xC0..=0xC2) {
            at += 2 + usize::from(u16::from_be_bytes([data[at + 2], data[at + 3]]));
        }
        data[at + 1] = code;
        prop_assert_eq!(ours(&data, 1), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_damage_is_survived_and_both_forms_agree(
        style in style(), hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(), whole: bool, shrink in 0u32..4,
    ) {
        let mut data = encode(&style);
        for (at, byte) in hits {
            let at = at.index(data.len());
            data[at] = byte;
        }
        if !whole {
            data.truncate(cut.index(data.len()));
        }
        ours(&data, 1 << shrink);
    }
}
