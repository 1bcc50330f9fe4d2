//! Polygons → runs, as pycocotools makes them (`maskApi.c`), so that a region covers the very pixels that COCO's own scores count.
//! In: corners in pixels. Out: turns of "not" and "of" the region down the columns, one after another.

/// Points between two pixels that a boundary is followed by.
const SCALE: f64 = 5.0;

/// Points after which it is seen whether the boundary stays in its place for long.
const LOOK: i32 = 64;

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
    // Where the boundary crosses the middle of a column. It is followed by points close to one another, of which those matter
    // at which it moves across; beyond the image it may be long, and is passed over.
    let beyond = (SCALE * w + 2.0) as i32;
    let mut starts: Vec<u32> = Vec::new();
    let mut cross = |(u0, v0): (i32, i32), (u, v): (i32, i32)| {
        let x = (f64::from(if u < u0 { u } else { u - 1 }) + 0.5) / SCALE - 0.5;
        if u == u0 || x.floor() != x || x < 0.0 || x > w - 1.0 {
            return;
        }
        let y = ((f64::from(v.min(v0)) + 0.5) / SCALE - 0.5).clamp(0.0, h).ceil();
        starts.push(x as u32 * height + y as u32);
    };
    let mut before = None;
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
        let point = |d: i32| {
            let t = if flip { steps - d } else { d };
            let across = |start: i32| (f64::from(start) + slope * f64::from(t) + 0.5) as i32;
            let (u, v) = if dx >= dy { (t + from.0, across(from.1)) } else { (across(from.0), t + from.1) };
            (u.clamp(-2, beyond), v)
        };
        let (mut at, mut last) = (0, point(0));
        cross(before.unwrap_or(last), last);
        while at < steps {
            at += 1;
            let next = point(at);
            cross(last, next);
            last = next;
            if at % LOOK == 0 {
                at = stays(at, steps, |d| point(d).0);
                last = point(at);
            }
        }
        before = Some(last);
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

/// The last place from `at` to `end` up to which numbers that only rise or only fall are what they are there.
fn stays(at: i32, end: i32, number: impl Fn(i32) -> i32) -> i32 {
    let (now, mut same, mut stride) = (number(at), at, 1);
    let mut other = loop {
        if same == end {
            return end;
        }
        let next = if end - same > stride { same + stride } else { end };
        if number(next) != now {
            break next;
        }
        (same, stride) = (next, stride.saturating_mul(2));
    };
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        *(if number(middle) == now { &mut same } else { &mut other }) = middle;
    }
    same
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
