//! A file descriptor that becomes readable when something has happened, for pollers (ZeroMQ, selectors, asyncio). In:
//! calls on any thread. Out: an eventfd, or a pipe where the system has none.

use std::io;

/// Counts events in a file descriptor.
pub struct Signal {
    read: libc::c_int,
    write: libc::c_int,
}

impl Signal {
    #[cfg(target_os = "linux")]
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { read: fd, write: fd }) }
    }

    #[cfg(not(target_os = "linux"))]
    pub fn new() -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors.
        if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in ends {
            // SAFETY: the descriptors were opened just now.
            unsafe {
                libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        Ok(Self { read: ends[0], write: ends[1] })
    }

    /// The end to poll and read.
    pub fn fd(&self) -> i32 {
        self.read
    }

    /// Makes it readable. A full pipe is readable already.
    pub fn raise(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read from an array of eight, by a descriptor that is open as long as `self`.
        unsafe { libc::write(self.write, one.as_ptr().cast(), one.len()) };
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        // SAFETY: opened by `new`, closed once.
        unsafe {
            libc::close(self.read);
            if self.write != self.read {
                libc::close(self.write);
            }
        }
    }
}
