//! Large pages for large buffers.
//!
//! The decision that shapes this file: a fresh page of 4 KiB costs more than filling
//! it, so that the system is asked for pages of 2 MiB where a buffer holds whole
//! ones. It is a request: without it, or where it is refused, everything works the
//! same.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Bytes from which a buffer is likely to hold a large page.
#[cfg(target_os = "linux")]
const LARGE: usize = 4 << 20;
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// Asks for large pages under memory that nothing was written to yet.
pub(crate) fn prefer_large_pages<T>(room: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    if size_of_val(room) >= LARGE {
        let start = room.as_mut_ptr().cast::<u8>();
        let skip = start.align_offset(PAGE);
        let len = (size_of_val(room) - skip) / PAGE * PAGE;
        // SAFETY: whole pages of memory that the slice borrows for itself; the advice
        // changes what backs them, never what they hold.
        unsafe { libc::madvise(start.add(skip).cast(), len, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = room;
}
