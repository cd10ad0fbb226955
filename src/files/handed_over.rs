//! The launcher's standard input, handed to rank 0 as an open file through a socket: mpirun does not pass it on whole.
//!
//! Not here: reading it (`standard_input.rs`).

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, stdin};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes of a message's control part: room for one open file.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(1));

/// Waits in a thread for a process to call [`take`] with this folder, and hands it this process's standard input.
///
/// # Errors
/// No room in the folder for temporary files, or no more threads.
pub(crate) fn offer() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("haf-dist-input-").tempdir()?;
    let listener = at(folder.path(), UnixListener::bind)?;
    // It waits for as long as the process lives: most commands read no standard input.
    std::thread::Builder::new().name("standard input".into()).spawn(move || {
        let (mut space, stdin) = ([MaybeUninit::uninit(); CONTROL], stdin());
        let files = [stdin.as_fd()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let (stream, _) = listener.accept()?;
        sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).map_err(io::Error::from)
    })?;
    Ok(folder)
}

/// The standard input of the process that called [`offer`].
///
/// # Errors
/// That process is gone, or handed it over already.
pub(super) fn take(folder: &Path) -> io::Result<File> {
    let stream = at(folder, UnixStream::connect)?;
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().map(File::from).ok_or_else(|| io::Error::other("the launcher did not hand it over"))
}

/// Does `what` at the socket in a folder. A socket's path may have 107 bytes, so the folder is named by its number.
fn at<T>(folder: &Path, what: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let folder = File::open(folder)?;
    what(PathBuf::from(format!("/proc/self/fd/{}/socket", folder.as_raw_fd())))
}
