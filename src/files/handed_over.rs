//! The launcher's standard input, handed to rank 0 as an open file through a socket: mpirun does not pass it on whole.
//!
//! The socket has a name in no file system, so nothing is left behind. Not here: reading the input (`standard_input.rs`).

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, stdin};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Bytes of a message's control part: room for one open file.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(1));

/// Waits in a thread for a process of this user to call [`take`] with the returned name, and hands it this process's standard
/// input.
///
/// # Errors
/// No sockets, or no more threads.
pub(crate) fn offer() -> io::Result<String> {
    let name = format!("haf-dist-input-{:032x}", rand::random::<u128>());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    // It waits for as long as the process lives: most commands read no standard input.
    std::thread::Builder::new().name("standard input".into()).spawn(move || {
        let (mut space, stdin) = ([MaybeUninit::uninit(); CONTROL], stdin());
        let files = [stdin.as_fd()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let stream = loop {
            let (stream, _) = listener.accept()?;
            if is_ours(&stream)? {
                break stream;
            }
        };
        sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).map_err(io::Error::from)
    })?;
    Ok(name)
}

/// The standard input of the process whose [`offer`] has this name.
///
/// # Errors
/// That process is gone, is another user's, or has handed it over already.
pub(super) fn take(name: &str) -> io::Result<File> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    if !is_ours(&stream)? {
        return Err(io::Error::other("another user's process offers it"));
    }
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().map(File::from).ok_or_else(|| io::Error::other("the launcher did not hand it over"))
}

/// Whether this user's process is at the other end: every user can see the names of sockets.
fn is_ours(stream: &UnixStream) -> io::Result<bool> {
    Ok(socket_peercred(stream)?.uid == rustix::process::geteuid())
}
