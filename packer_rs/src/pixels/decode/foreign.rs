//! Formats that no decoder here reads, through helper processes. In: encoded bytes. Out: size and orientation, or
//! samples. The command of a helper is given from outside (`navit_loader/foreign.py` is one, through Pillow) and speaks
//! the few bytes described there: a request with the file on its standard input, a reply on its standard output.
//!
//! Apart, and in processes of their own, so that such an image holds up nobody: no thread here takes an interpreter's
//! lock, each thread has a helper of its own, and a decoder that crashes on a hostile file takes nobody with it.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Mutex;

use crate::failure::{Failure, Reason};
use crate::pixels::picture::{Depth, Wanted, room};
use crate::sync::lock;

/// Files beyond this are not handed over.
const MOST_BYTES: u64 = 1 << 30;
const HEAD: usize = 19;
/// What is asked for where it is no pixels; a flag beside the number of channels.
const HEADER: u8 = 0;
const DEEP: u8 = 16;
/// A flag beside what is asked for: colour profiles are applied.
const CONVERT: u8 = 16;

/// What a helper said of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Width and height as stored.
    pub size: (u32, u32),
    /// EXIF orientation, 1 to 8.
    pub orientation: u8,
    /// 1 grey, 3 RGB, 4 RGBA; 0 where only the header was asked for.
    pub channels: usize,
    /// Whether the samples were 16 bits wide.
    pub deep: bool,
    /// Bytes of samples, at the front of the buffer.
    pub samples: usize,
    /// Bytes of the embedded colour profile, behind them; 0 where it was applied.
    pub profile: usize,
}

/// The helpers of one engine: as many as there are threads that need one at the same time. They end with this.
#[derive(Debug, Default)]
pub struct Helpers {
    command: Vec<String>,
    idle: Mutex<Vec<Helper>>,
}

#[derive(Debug)]
struct Helper {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
    owner: u32,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // A forked child has the object, but the process is its parent's.
        if std::process::id() != self.owner {
            return;
        }
        // It holds nothing that is worth a farewell; both calls fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why a helper gave no answer.
enum Silence {
    /// It could not be started or spoken to.
    Io(io::Error),
    /// It ended in the middle of an image.
    Ended(ExitStatus),
    /// What it said makes no sense.
    Nonsense,
}

impl Helpers {
    /// Helpers that `command` starts; an empty command means that there are none.
    pub fn new(command: Vec<String>) -> Self {
        Self { command, idle: Mutex::default() }
    }

    /// Whether there is no command.
    pub fn is_empty(&self) -> bool {
        self.command.is_empty()
    }

    /// What the header of `bytes` says. `scratch` is a buffer to be used again.
    pub fn header(&self, bytes: &[u8], scratch: &mut Vec<u8>) -> Result<Reply, Failure> {
        self.ask(bytes, HEADER, u64::MAX, scratch)
    }

    /// The samples of the image, under a profile that fits it as sRGB where that is wanted, into `out`.
    pub fn pixels(&self, bytes: &[u8], wanted: &Wanted, out: &mut Vec<u8>) -> Result<Reply, Failure> {
        let what = match wanted.depth {
            Depth::Full => 1,
            Depth::Largest => 2,
            Depth::Bits(bits) => bits,
        };
        self.ask(bytes, if wanted.convert { what | CONVERT } else { what }, wanted.max_pixels, out)
    }

    fn ask(&self, bytes: &[u8], what: u8, max_pixels: u64, out: &mut Vec<u8>) -> Result<Reply, Failure> {
        let fail = |reason, detail: String| Err(Failure::decode(reason, detail));
        if self.is_empty() {
            return fail(
                Reason::Unsupported,
                "its format is read through Pillow alone, which is not at hand here".into(),
            );
        }
        if bytes.len() as u64 > MOST_BYTES {
            return fail(
                Reason::TooLarge,
                format!("{} bytes; files beyond {MOST_BYTES} do not go through Pillow", bytes.len()),
            );
        }
        let idle = lock(&self.idle).pop();
        let mut outcome = Err(Silence::Nonsense);
        if let Some(mut helper) = idle {
            outcome = helper.ask(bytes, what, max_pixels, out).map(|reply| (helper, reply));
        }
        // An idle helper may have ended in peace, so its silence says nothing about this image.
        if outcome.is_err() {
            outcome = Helper::start(&self.command)
                .map_err(Silence::Io)
                .and_then(|mut helper| helper.ask(bytes, what, max_pixels, out).map(|reply| (helper, reply)));
        }
        match outcome {
            Ok((helper, reply)) => {
                lock(&self.idle).push(helper);
                reply
            }
            Err(Silence::Io(e)) => fail(Reason::Helper, format!("'{}' cannot be started: {e}", self.command.join(" "))),
            Err(Silence::Nonsense) => fail(Reason::Panic, "Pillow's helper gave an answer that makes no sense".into()),
            Err(Silence::Ended(status)) => match status.signal() {
                // The system's own last resort when memory is short, which may pass.
                Some(libc::SIGKILL) => fail(Reason::Memory, "Pillow's helper was killed".into()),
                Some(libc::SIGXCPU) => fail(Reason::Panic, "Pillow's decoder did not come to an end".into()),
                Some(signal) => fail(Reason::Panic, format!("Pillow's decoder crashed with signal {signal}")),
                None => fail(Reason::Helper, format!("'{}' ended with {status}", self.command.join(" "))),
            },
        }
    }
}

impl Helper {
    fn start(command: &[String]) -> io::Result<Self> {
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for the trainer; its helpers end with it.
            .process_group(0)
            .spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        Ok(Self { child, to, from, owner: std::process::id() })
    }

    fn ask(
        &mut self,
        bytes: &[u8],
        what: u8,
        max_pixels: u64,
        out: &mut Vec<u8>,
    ) -> Result<Result<Reply, Failure>, Silence> {
        let mut head = [0; HEAD];
        self.exchange(bytes, what, max_pixels, &mut head).map_err(|e| self.silence(e))?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let pixels = what != HEADER;
        let (size, orientation) = ((word(1), word(5)), head[9]);
        let (channels, deep) = (usize::from(head[10] & !DEEP), head[10] & DEEP != 0);
        let length = u64::from(word(11)) | u64::from(word(15)) << 32;
        let pixel_count = u64::from(size.0) * u64::from(size.1);
        let samples = if pixels { pixel_count.saturating_mul(channels as u64) } else { 0 };
        let failed = head[0] == 1;
        let sensible = failed
            || head[0] == 0
                && size.0 > 0
                && size.1 > 0
                && (1..=8).contains(&orientation)
                && pixels == matches!(channels, 1 | 3 | 4)
                && pixel_count <= max_pixels
                && length >= samples;
        // A profile or a reason is small; nothing is allocated on a helper's word alone.
        if !sensible || length > samples.saturating_add(1 << 24) {
            return Err(Silence::Nonsense);
        }
        let length = length as usize;
        room(out, length);
        self.from.read_exact(&mut out[..length]).map_err(|e| self.silence(e))?;
        if failed {
            let text = String::from_utf8_lossy(&out[..length]).into_owned();
            let (reason, detail) = text.split_once('\n').unwrap_or(("corrupt", &text));
            let known = [Reason::Truncated, Reason::Unsupported, Reason::TooLarge, Reason::Memory];
            let reason = known.into_iter().find(|known| known.word() == reason).unwrap_or(Reason::Corrupt);
            return Ok(Err(Failure::decode(reason, detail)));
        }
        let samples = samples as usize;
        Ok(Ok(Reply { size, orientation, channels, deep, samples, profile: length - samples }))
    }

    /// Sends one request and reads the start of its reply.
    fn exchange(&mut self, bytes: &[u8], what: u8, max_pixels: u64, head: &mut [u8; HEAD]) -> io::Result<()> {
        let mut request = [0; 17];
        request[0] = what;
        request[1..9].copy_from_slice(&max_pixels.to_le_bytes());
        request[9..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.to.write_all(&request)?;
        self.to.write_all(bytes)?;
        self.from.read_exact(head)
    }

    /// Why the pipe broke: as a rule because the helper ended.
    fn silence(&mut self, e: io::Error) -> Silence {
        match e.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                self.child.wait().map_or_else(Silence::Io, Silence::Ended)
            }
            _ => Silence::Io(e),
        }
    }
}
