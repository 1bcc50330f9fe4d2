//! Progressive JPEG files of any script of scans, which no encoder at hand writes. In: sizes and a seed. Out: a file whose
//! coefficients, codes, bands, bits, restarts and order of scans are drawn.

/// Draws.
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % most.max(1)
    }
}

/// How a file is written.
#[derive(Clone, Debug)]
pub struct Script {
    pub width: usize,
    pub height: usize,
    /// Of each component.
    pub sampling: Vec<(usize, usize)>,
    pub seed: u64,
}

/// One scan: components, band, bits.
#[derive(Clone, Debug)]
struct Scan {
    parts: Vec<usize>,
    band: (usize, usize),
    high: u32,
    low: u32,
}

/// Codes of all 256 symbols.
struct Codes {
    counts: [u8; 16],
    symbols: Vec<u8>,
    code: [(u32, u32); 256],
}

impl Codes {
    fn drawn(draw: &mut Draw) -> Self {
        // A few short ones, and the rest of one length, within and beyond any look-up.
        let (short, long) = [(0, 9), (4, 10), (6, 13), (3, 16)][draw.below(4)];
        let mut counts = [0; 16];
        counts[1..1 + short].fill(1);
        counts[long - 1] = 250 - short as u8;
        counts[15] = counts[15].max(1);
        let missing = 256 - counts.iter().map(|&n| usize::from(n)).sum::<usize>();
        counts[14] += missing as u8;
        let mut symbols: Vec<u8> = (0..=255).collect();
        for n in (1..256).rev() {
            symbols.swap(n, draw.below(n + 1));
        }
        let (mut code, mut next, mut n) = ([(0, 0); 256], 0u32, 0);
        for (length, &count) in counts.iter().enumerate() {
            for _ in 0..count {
                code[usize::from(symbols[n])] = (next, length as u32 + 1);
                (next, n) = (next + 1, n + 1);
            }
            next <<= 1;
        }
        Self { counts, symbols, code }
    }
}

#[derive(Default)]
struct Bits {
    out: Vec<u8>,
    word: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for n in (0..count).rev() {
            self.word = self.word << 1 | u64::from(value >> n & 1);
            self.count += 1;
            if self.count == 8 {
                let byte = self.word as u8;
                self.out.push(byte);
                if byte == 0xFF {
                    self.out.push(0);
                }
                (self.word, self.count) = (0, 0);
            }
        }
    }

    fn symbol(&mut self, codes: &Codes, symbol: usize) {
        let (code, length) = codes.code[symbol];
        self.put(code, length);
    }

    fn flush(&mut self) {
        if self.count > 0 {
            self.put(u32::MAX, 8 - self.count);
        }
    }
}

/// A run of blocks in which nothing is left, and the bits of what was not zero in them.
#[derive(Default)]
struct Run {
    blocks: usize,
    bits: Vec<u32>,
}

impl Run {
    fn flush(&mut self, bits: &mut Bits, codes: &Codes) {
        if self.blocks > 0 {
            let size = self.blocks.ilog2();
            bits.symbol(codes, (size as usize) << 4);
            bits.put(self.blocks as u32 & ((1 << size) - 1), size);
            self.bits.drain(..).for_each(|bit| bits.put(bit, 1));
            self.blocks = 0;
        }
    }
}

fn size_of(value: i32) -> u32 {
    32 - value.unsigned_abs().leading_zeros()
}

fn extra(value: i32) -> u32 {
    if value < 0 { (value - 1) as u32 } else { value as u32 }
}

fn ac_first(block: &[i32; 64], scan: &Scan, most: usize, run: &mut Run, bits: &mut Bits, codes: &Codes) {
    let mut zeros = 0;
    for &value in &block[scan.band.0..=scan.band.1] {
        let value = value.signum() * (value.abs() >> scan.low);
        if value == 0 {
            zeros += 1;
            continue;
        }
        run.flush(bits, codes);
        while zeros > 15 {
            bits.symbol(codes, 0xF0);
            zeros -= 16;
        }
        bits.symbol(codes, zeros << 4 | size_of(value) as usize);
        bits.put(extra(value), size_of(value));
        zeros = 0;
    }
    if zeros > 0 {
        run.blocks += 1;
        if run.blocks >= most {
            run.flush(bits, codes);
        }
    }
}

fn ac_more(block: &[i32; 64], scan: &Scan, most: usize, run: &mut Run, bits: &mut Bits, codes: &Codes) {
    let value = |k: usize| block[k].unsigned_abs() >> scan.low;
    let last = (scan.band.0..=scan.band.1).rev().find(|&k| value(k) == 1).unwrap_or(0);
    let (mut zeros, mut own) = (0, Vec::new());
    for (k, coefficient) in block.iter().enumerate().take(scan.band.1 + 1).skip(scan.band.0) {
        if value(k) == 0 {
            zeros += 1;
            continue;
        }
        while zeros > 15 && k <= last {
            run.flush(bits, codes);
            bits.symbol(codes, 0xF0);
            zeros -= 16;
            own.drain(..).for_each(|bit| bits.put(bit, 1));
        }
        if value(k) > 1 {
            own.push(value(k) & 1);
            continue;
        }
        run.flush(bits, codes);
        bits.symbol(codes, zeros << 4 | 1);
        bits.put(u32::from(*coefficient >= 0), 1);
        own.drain(..).for_each(|bit| bits.put(bit, 1));
        zeros = 0;
    }
    if zeros > 0 || !own.is_empty() {
        run.blocks += 1;
        run.bits.append(&mut own);
        if run.blocks >= most {
            run.flush(bits, codes);
        }
    }
}

/// Bands with their bits, one after the other, for one component; each list in the order in which it has to be sent.
fn bands(part: usize, draw: &mut Draw) -> Vec<Vec<Scan>> {
    let (mut from, mut found) = (1, Vec::new());
    while from < 64 {
        let to = if draw.below(3) == 0 { 63 } else { from + draw.below(64 - from) };
        found.push(steps(vec![part], (from, to), draw));
        from = to + 1;
    }
    found
}

fn steps(parts: Vec<usize>, band: (usize, usize), draw: &mut Draw) -> Vec<Scan> {
    let low = draw.below(4) as u32;
    let scan = |high, low| Scan { parts: parts.clone(), band, high, low };
    std::iter::once(scan(0, low)).chain((0..low).rev().map(|n| scan(n + 1, n))).collect()
}

/// Where each scan of `encode` begins, and the file.
pub fn encode(script: &Script) -> (Vec<u8>, Vec<usize>) {
    let draw = &mut Draw(script.seed);
    let count = script.sampling.len();
    let most = script.sampling.iter().fold((1, 1), |m, s| (m.0.max(s.0), m.1.max(s.1)));
    let mcus = (script.width.div_ceil(8 * most.0), script.height.div_ceil(8 * most.1));
    // Coefficients in zigzag order, smaller towards the end, many of them zero, some blocks all zero.
    let scale = draw.below(11);
    let planes: Vec<Vec<[i32; 64]>> = script
        .sampling
        .iter()
        .map(|s| {
            let blocks = 0..mcus.0 * s.0 * mcus.1 * s.1;
            blocks
                .map(|_| {
                    let (mut block, full) = ([0; 64], draw.below(4) != 0);
                    let density = 1 + draw.below(9);
                    for (k, to) in block.iter_mut().enumerate() {
                        if k == 0 || full && draw.below(density) == 0 {
                            let bits = if k == 0 { 10 } else { scale.saturating_sub(k / 9) };
                            *to = draw.below(1 << (bits + 1)) as i32 - (1 << bits);
                        }
                    }
                    block
                })
                .collect()
        })
        .collect();

    // What is sent after what: DC before AC, each band's bits in order.
    let mut queues: Vec<Vec<Scan>> = Vec::new();
    if count > 1 && draw.below(3) > 0 {
        queues.push(steps((0..count).collect(), (0, 0), draw));
    } else {
        (0..count).for_each(|c| queues.push(steps(vec![c], (0, 0), draw)));
    }
    let mut scans: Vec<Scan> = queues.iter_mut().map(|q| q.remove(0)).collect();
    (0..count).for_each(|c| queues.extend(bands(c, draw)));
    while !queues.is_empty() {
        let n = draw.below(queues.len());
        if queues[n].is_empty() {
            queues.remove(n);
        } else {
            scans.push(queues[n].remove(0));
        }
    }

    let segment = |code: u8, body: &[u8]| {
        let length = (body.len() + 2) as u16;
        [&[0xFF, code][..], &length.to_be_bytes(), body].concat()
    };
    let mut out = vec![0xFF, 0xD8];
    out.extend(segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"));
    out.extend(segment(0xDB, &[&[0][..], &[1 + draw.below(8) as u8; 64]].concat()));
    let side = |n: usize| (n as u16).to_be_bytes();
    let mut frame = [&[8][..], &side(script.height), &side(script.width), &[count as u8]].concat();
    for (n, s) in script.sampling.iter().enumerate() {
        frame.extend([n as u8 + 1, (s.0 << 4 | s.1) as u8, 0]);
    }
    out.extend(segment(0xC2, &frame));
    let (mut starts, mut interval) = (Vec::new(), 0);
    for scan in &scans {
        starts.push(out.len());
        let codes = Codes::drawn(draw);
        let kind = if scan.band.0 == 0 { 0x00 } else { 0x10 };
        // DC codes have sizes of 15 at most.
        let table = if kind == 0 { dc_codes() } else { codes };
        out.extend(segment(0xC4, &[&[kind][..], &table.counts, &table.symbols].concat()));
        if draw.below(3) == 0 {
            interval = draw.below(8);
            out.extend(segment(0xDD, &[0, interval as u8]));
        }
        let mut head = vec![scan.parts.len() as u8];
        head.extend(scan.parts.iter().flat_map(|&c| [c as u8 + 1, 0]));
        head.extend([scan.band.0 as u8, scan.band.1 as u8, (scan.high << 4 | scan.low) as u8]);
        out.extend(segment(0xDA, &head));
        let alone = scan.parts.len() == 1;
        let s = script.sampling[scan.parts[0]];
        let real = |side: usize, own: usize, most: usize| (side * own).div_ceil(most).div_ceil(8);
        let (across, down) =
            if alone { (real(script.width, s.0, most.0), real(script.height, s.1, most.1)) } else { mcus };
        let most_blocks = [1, 4, 300][draw.below(3)];
        let longest = 1 + draw.below(most_blocks);
        let (mut bits, mut run, mut last, mut restarts) = (Bits::default(), Run::default(), [0; 3], 0);
        for unit in 0..across * down {
            if interval > 0 && unit > 0 && unit % interval == 0 {
                run.flush(&mut bits, &table);
                bits.flush();
                bits.out.extend([0xFF, 0xD0 + restarts % 8]);
                (last, restarts) = ([0; 3], restarts + 1);
            }
            for &c in &scan.parts {
                let s = if alone { (1, 1) } else { script.sampling[c] };
                let stride = mcus.0 * script.sampling[c].0;
                for n in 0..s.0 * s.1 {
                    let (y, x) = (unit / across * s.1 + n / s.0, unit % across * s.0 + n % s.0);
                    let block = &planes[c][y * stride + x];
                    match (scan.band.0, scan.high) {
                        (0, 0) => {
                            let value = block[0] >> scan.low;
                            let step = value - last[c];
                            last[c] = value;
                            bits.symbol(&table, size_of(step) as usize);
                            bits.put(extra(step), size_of(step));
                        }
                        (0, _) => bits.put((block[0] >> scan.low) as u32 & 1, 1),
                        (_, 0) => ac_first(block, scan, longest, &mut run, &mut bits, &table),
                        _ => ac_more(block, scan, longest, &mut run, &mut bits, &table),
                    }
                }
            }
        }
        run.flush(&mut bits, &table);
        bits.flush();
        out.extend(bits.out);
    }
    out.extend([0xFF, 0xD9]);
    (out, starts)
}

/// Sizes 0 to 15, of four or five bits.
fn dc_codes() -> Codes {
    let mut counts = [0; 16];
    (counts[3], counts[4]) = (14, 2);
    let mut code = [(0, 0); 256];
    for (n, to) in code[..16].iter_mut().enumerate() {
        *to = if n < 14 { (n as u32, 4) } else { (28 + n as u32 - 14, 5) };
    }
    Codes { counts, symbols: (0..16).collect(), code }
}
