//! Fewer fresh pages.
//!
//! The decision that shapes this file: a fresh page of 4 KiB costs more than filling
//! it. So the system is asked for pages of 2 MiB where a buffer holds whole ones, and
//! programs can keep what buffers leave. Both are requests: where they are refused,
//! everything works the same.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Bytes from which a buffer is likely to hold a large page.
#[cfg(target_os = "linux")]
const LARGE: usize = 4 << 20;
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// Lets this process keep up to 256 MiB of freed memory for its next buffers, where glibc
/// would give them back and clear fresh pages. For a program's beginning.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const KEPT: i32 = 256 << 20;
        const MAPPED_ALONE: i32 = 32 << 20;
        // SAFETY: sets two numbers of the allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_ALONE);
        }
    }
}

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
