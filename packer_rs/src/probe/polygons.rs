//! Polygons → runs, as pycocotools makes them (`maskApi.c`), so that a region covers the very pixels that COCO's own scores count.
//! In: corners in pixels. Out: turns of "not" and "of" the region down the columns, one after another.

/// Points between two pixels that a boundary is followed by.
const SCALE: f64 = 5.0;

/// The runs of the pixels in any of some polygons: x, y of each corner, one after another, at least three.
pub fn union(polygons: &[Vec<f64>], width: u32, height: u32) -> Vec<u32> {
    let mut runs = polygons.iter().map(|corners| polygon(corners, width, height));
    let Some(first) = runs.next() else { return vec![width * height] };
    runs.fold(first, |all, more| either(&all, &more))
}

fn polygon(corners: &[f64], width: u32, height: u32) -> Vec<u32> {
    let (w, h) = (f64::from(width), f64::from(height));
    let at = |value: f64| (SCALE * value + 0.5) as i32;
    let mut points: Vec<(i32, i32)> = corners.chunks_exact(2).map(|corner| (at(corner[0]), at(corner[1]))).collect();
    points.extend_from_within(..1);
    // Points along the boundary, close to one another.
    let mut dense: Vec<(i32, i32)> = Vec::new();
    for ends in points.windows(2) {
        let ((mut from, mut to), (dx, dy)) =
            ((ends[0], ends[1]), ((ends[1].0 - ends[0].0).abs(), (ends[1].1 - ends[0].1).abs()));
        let flip = (dx >= dy && from.0 > to.0) || (dx < dy && from.1 > to.1);
        if flip {
            (from, to) = (to, from);
        }
        let steps = dx.max(dy);
        let (rise, run) = if dx >= dy { (to.1 - from.1, dx) } else { (to.0 - from.0, dy) };
        let slope = if run == 0 { 0.0 } else { f64::from(rise) / f64::from(run) };
        for d in 0..=steps {
            let t = if flip { steps - d } else { d };
            let across = |start: i32| (f64::from(start) + slope * f64::from(t) + 0.5) as i32;
            dense.push(if dx >= dy { (t + from.0, across(from.1)) } else { (across(from.0), t + from.1) });
        }
    }
    // Where it crosses the middle of a column.
    let mut starts: Vec<u32> = Vec::new();
    for pair in dense.windows(2) {
        let ((u0, v0), (u, v)) = (pair[0], pair[1]);
        if u == u0 {
            continue;
        }
        let x = (f64::from(if u < u0 { u } else { u - 1 }) + 0.5) / SCALE - 0.5;
        if x.floor() != x || x < 0.0 || x > w - 1.0 {
            continue;
        }
        let y = ((f64::from(v.min(v0)) + 0.5) / SCALE - 0.5).clamp(0.0, h).ceil();
        starts.push(x as u32 * height + y as u32);
    }
    starts.push(width * height);
    starts.sort_unstable();
    let mut before = 0;
    for start in &mut starts {
        (*start, before) = (*start - before, *start);
    }
    // Two crossings at one place are none.
    let mut runs = vec![starts[0]];
    let mut rest = starts[1..].iter();
    while let Some(&length) = rest.next() {
        if length > 0 {
            runs.push(length);
        } else if let (Some(&length), Some(last)) = (rest.next(), runs.last_mut()) {
            *last += length;
        }
    }
    runs
}

/// The runs of what is in one region or the other.
fn either(a: &[u32], b: &[u32]) -> Vec<u32> {
    let (mut all, mut length, mut now) = (Vec::new(), 0, false);
    let (mut of_a, mut of_b) = ((a[0], 1, false), (b[0], 1, false));
    loop {
        let step = of_a.0.min(of_b.0);
        length += step;
        let mut left = 0;
        for (runs, (rest, next, inside)) in [(a, &mut of_a), (b, &mut of_b)] {
            *rest -= step;
            if *rest == 0
                && let Some(&run) = runs.get(*next)
            {
                (*rest, *next, *inside) = (run, *next + 1, !*inside);
            }
            left += *rest;
        }
        let before = std::mem::replace(&mut now, of_a.2 || of_b.2);
        if now != before || left == 0 {
            all.push(std::mem::take(&mut length));
        }
        if left == 0 {
            return all;
        }
    }
}
