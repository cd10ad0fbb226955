//! Status reports between ranks over TCP, so that MPI cannot hold them up: a few times a second each rank sends rank 0 what
//! it is doing, and rank 0 answers with what it is doing itself. Within one node the connections use the loopback interface.
//!
//! Nothing here waits for a peer, except up to a second for an address that does not answer. Every frame carries a secret
//! that MPI has distributed; a peer without it is disconnected. Not here: what follows from the reports (`judge.rs`).

use super::super::progress::{Doing, whole_letters};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes of a frame: a secret, numbers, two texts.
const FRAME: usize = 320;
/// Most bytes of each text; a longer one is cut.
const PURPOSE: usize = 192;
const WORK: usize = 64;
/// Where the numbers and texts begin.
const RANK: usize = 16;
const BEGUN: usize = 20;
const INSIDE: usize = 28;
const TEXTS: usize = 29;

/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two rounds over the addresses.
const AGAIN: Duration = Duration::from_secs(5);
/// Connections allowed beyond one a rank: those of strangers, and old ones of ranks that connected again.
const STRANGERS: usize = 16;

type Secret = [u8; 16];

/// Where rank 0 listens, for MPI to distribute.
#[derive(Debug, Clone)]
pub(super) struct Invitation {
    secret: Secret,
    addresses: Vec<SocketAddr>,
}

/// Bytes of an invitation.
pub(super) const INVITATION: usize = 2048;

impl Invitation {
    /// Listens for the ranks of this node, or of any node. Without addresses if the system refuses.
    pub(crate) fn new(one_node: bool) -> (Self, Option<TcpListener>) {
        let at = |address: IpAddr| TcpListener::bind(SocketAddr::new(address, 0)).ok();
        let listener = match one_node {
            true => at(Ipv4Addr::LOCALHOST.into()).or_else(|| at(Ipv6Addr::LOCALHOST.into())),
            // An IPv6 listener takes IPv4 connections too.
            false => at(Ipv6Addr::UNSPECIFIED.into()).or_else(|| at(Ipv4Addr::UNSPECIFIED.into())),
        };
        let listener = listener.filter(|listener| listener.set_nonblocking(true).is_ok());
        let bound = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let addresses = bound.map_or_else(Vec::new, |bound| match one_node {
            true => vec![bound],
            false => interfaces().into_iter().map(|address| SocketAddr::new(address, bound.port())).collect(),
        });
        (Self { secret: rand::random(), addresses }, listener)
    }

    /// As bytes, for MPI.
    pub(crate) fn pack(&self) -> [u8; INVITATION] {
        let mut bytes = [0; INVITATION];
        bytes[..16].copy_from_slice(&self.secret);
        let mut end = 16;
        for line in self.addresses.iter().map(|address| format!("{address}\n")) {
            let Some(place) = bytes.get_mut(end..end + line.len()) else { break };
            place.copy_from_slice(line.as_bytes());
            end += line.len();
        }
        bytes
    }

    /// The invitation in these bytes.
    pub(crate) fn unpack(bytes: &[u8; INVITATION]) -> Self {
        let mut secret = [0; 16];
        secret.copy_from_slice(&bytes[..16]);
        let text = String::from_utf8_lossy(&bytes[16..]);
        Self { secret, addresses: text.lines().filter_map(|line| line.parse().ok()).collect() }
    }
}

/// This machine's addresses that others may reach, IPv4 first.
fn interfaces() -> Vec<IpAddr> {
    let found = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    });
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let mut found: Vec<_> = found.filter(|address| !address.is_loopback() && !link_local(address)).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        // Without a network there is one machine, whatever MPI takes for nodes.
        found.push(Ipv4Addr::LOCALHOST.into());
    }
    found
}

fn pack(secret: &Secret, rank: usize, doing: &Doing) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..RANK].copy_from_slice(secret);
    frame[RANK..BEGUN].copy_from_slice(&(rank as u32).to_le_bytes());
    frame[BEGUN..INSIDE].copy_from_slice(&doing.begun.to_le_bytes());
    frame[INSIDE] = u8::from(doing.inside);
    let mut at = TEXTS;
    for (text, most) in [(&doing.purpose, PURPOSE), (&doing.work, WORK)] {
        let text = &text[..whole_letters(text, most)];
        frame[at] = text.len() as u8;
        frame[at + 1..][..text.len()].copy_from_slice(text.as_bytes());
        at += 1 + text.len();
    }
    frame
}

/// A frame's sender and what it is doing; none if no rank of this job sent the frame.
fn unpack(frame: &[u8; FRAME], secret: &Secret) -> Option<(usize, Doing)> {
    if frame[..RANK] != secret[..] {
        return None;
    }
    let rank = u32::from_le_bytes(frame[RANK..BEGUN].try_into().ok()?);
    let begun = u64::from_le_bytes(frame[BEGUN..INSIDE].try_into().ok()?);
    let mut rest = &frame[TEXTS..];
    let mut text = || {
        let (length, more) = rest.split_first()?;
        let (text, more) = more.split_at_checked(usize::from(*length))?;
        rest = more;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let (purpose, work) = (text()?, text()?);
    Some((rank as usize, Doing { begun, inside: frame[INSIDE] != 0, purpose, work }))
}

/// One connection.
struct Peer {
    stream: TcpStream,
    /// The start of a frame that has not fully arrived.
    input: Vec<u8>,
    /// The rest of a frame that the system has not yet taken.
    output: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, input: Vec::new(), output: Vec::new() })
    }

    /// The last frame that has arrived, if any; the outer option is none once the connection is unusable.
    fn receive(&mut self, secret: &Secret) -> Option<Option<(usize, Doing)>> {
        let mut last = None;
        let mut buffer = [0; FRAME];
        loop {
            match self.stream.read(&mut buffer[..FRAME - self.input.len()]) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(last),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
            if let Ok(frame) = <&[u8; FRAME]>::try_from(&self.input[..]) {
                last = Some(unpack(frame, secret)?);
                self.input.clear();
            }
        }
    }

    /// Sends a frame, unless the one before has not left yet because the peer does not read. False once the connection is
    /// unusable.
    fn send(&mut self, frame: &[u8; FRAME]) -> bool {
        if self.output.is_empty() {
            self.output.extend_from_slice(frame);
        }
        match self.stream.write(&self.output) {
            Ok(count) => drop(self.output.drain(..count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        true
    }
}

/// Rank 0's end.
pub(super) struct Server {
    secret: Secret,
    listener: Option<TcpListener>,
    world_size: usize,
    peers: Vec<Peer>,
}

impl Server {
    /// Answers the ranks that connect with this invitation.
    pub(crate) fn new(invitation: &Invitation, listener: Option<TcpListener>, world_size: usize) -> Self {
        Self { secret: invitation.secret, listener, world_size, peers: Vec::new() }
    }

    /// Passes on the reports that have arrived, and answers each with what rank 0 is doing.
    pub(crate) fn poll(&mut self, own: &Doing, mut heard: impl FnMut(usize, Doing)) {
        while self.peers.len() < self.world_size + STRANGERS
            && let Some(Ok((stream, _))) = self.listener.as_ref().map(TcpListener::accept)
        {
            self.peers.extend(Peer::new(stream));
        }
        let frame = pack(&self.secret, 0, own);
        let (secret, world_size) = (self.secret, self.world_size);
        self.peers.retain_mut(|peer| {
            let Some(message) = peer.receive(&secret) else { return false };
            // Send nothing to a peer that has not identified itself: the frame holds the secret.
            let Some((rank, doing)) = message else { return true };
            if rank < world_size {
                heard(rank, doing);
            }
            peer.send(&frame)
        });
    }
}

/// Any other rank's end.
pub(super) struct Client {
    rank: usize,
    invitation: Invitation,
    peer: Option<Peer>,
    tried: Option<Instant>,
}

impl Client {
    /// Connects to rank 0 when first polled.
    pub(crate) fn new(rank: usize, invitation: Invitation) -> Self {
        Self { rank, invitation, peer: None, tried: None }
    }

    /// Tells rank 0 what this rank is doing. Returns rank 0's last answer since the last call.
    pub(crate) fn poll(&mut self, own: &Doing) -> Option<Doing> {
        if self.peer.is_none() && self.tried.is_none_or(|tried| tried.elapsed() >= AGAIN) {
            let connect = |address| TcpStream::connect_timeout(address, PATIENCE).ok().and_then(Peer::new);
            self.peer = self.invitation.addresses.iter().find_map(connect);
            self.tried = Some(Instant::now());
        }
        let frame = pack(&self.invitation.secret, self.rank, own);
        let peer = self.peer.as_mut()?;
        let message = peer.receive(&self.invitation.secret);
        if message.is_none() || !peer.send(&frame) {
            self.peer = None;
        }
        message.flatten().map(|(_, doing)| doing)
    }

    /// The addresses at which rank 0 was tried.
    pub(crate) fn addresses(&self) -> String {
        self.invitation.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doing(begun: u64, purpose: &str) -> Doing {
        Doing { begun, inside: true, purpose: purpose.into(), work: "saving step 3".into() }
    }

    /// Polls both ends, which are doing `own`, until `until` holds, which takes some milliseconds.
    fn exchange(
        server: &mut Server,
        client: &mut Client,
        own: [&Doing; 2],
        mut until: impl FnMut(&Heard) -> bool,
    ) -> Heard {
        let mut heard = Heard::default();
        let start = Instant::now();
        while !until(&heard) && start.elapsed() < Duration::from_secs(20) {
            heard.by_client = client.poll(own[1]).or(heard.by_client);
            server.poll(own[0], |rank, doing| heard.by_server = Some((rank, doing)));
            std::thread::sleep(Duration::from_millis(2));
        }
        heard
    }

    #[derive(Debug, Default)]
    struct Heard {
        by_server: Option<(usize, Doing)>,
        by_client: Option<Doing>,
    }

    #[test]
    fn both_ends_hear_what_the_other_is_doing() {
        for one_node in [true, false] {
            let (invitation, listener) = Invitation::new(one_node);
            let mut server = Server::new(&invitation, listener, 3);
            let mut client = Client::new(2, Invitation::unpack(&invitation.pack()));
            let (at_server, at_client) = (doing(7, "bucket 3 of step 2"), doing(6, "a vote"));
            let heard = exchange(&mut server, &mut client, [&at_server, &at_client], |heard| {
                heard.by_server.is_some() && heard.by_client.is_some()
            });
            assert_eq!(heard.by_server, Some((2, at_client)));
            assert_eq!(heard.by_client, Some(at_server));
        }
    }

    #[test]
    fn a_peer_without_the_secret_is_disconnected_without_an_answer() {
        let (invitation, listener) = Invitation::new(true);
        let mut server = Server::new(&invitation, listener, 2);
        let mut stranger = Client::new(1, Invitation { secret: [7; 16], ..invitation.clone() });
        let heard = exchange(&mut server, &mut stranger, [&doing(1, "x"), &doing(1, "x")], {
            let start = Instant::now();
            move |_| start.elapsed() > Duration::from_millis(300)
        });
        assert!(heard.by_server.is_none() && heard.by_client.is_none(), "{heard:?}");
        assert!(server.peers.is_empty());
        let mut rank = Client::new(1, invitation);
        let heard =
            exchange(&mut server, &mut rank, [&doing(1, "x"), &doing(1, "x")], |heard| heard.by_server.is_some());
        assert!(heard.by_server.is_some(), "the control: a rank is heard");
    }

    #[test]
    fn frames_hold_long_texts_cut_at_a_letter() {
        let long = Doing { begun: u64::MAX, inside: false, purpose: "\u{e9}".repeat(300), work: "w".repeat(300) };
        let (rank, read) = unpack(&pack(&[1; 16], 70_000, &long), &[1; 16]).unwrap();
        assert_eq!((rank, read.begun, read.inside), (70_000, u64::MAX, false));
        assert_eq!((read.purpose, read.work), ("\u{e9}".repeat(PURPOSE / 2), "w".repeat(WORK)));
        assert_eq!(unpack(&pack(&[1; 16], 1, &long), &[2; 16]), None);
        let mut broken = pack(&[1; 16], 1, &long);
        broken[TEXTS] = 255;
        broken[TEXTS + 256.min(FRAME - TEXTS - 1)] = 255;
        assert_eq!(unpack(&broken, &[1; 16]), None);
    }

    #[test]
    fn an_invitation_with_too_many_addresses_is_cut_at_an_address() {
        let address: SocketAddr = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
        let invitation = Invitation { secret: [3; 16], addresses: vec![address; 100] };
        let read = Invitation::unpack(&invitation.pack());
        assert_eq!(read.secret, [3; 16]);
        assert!(read.addresses.len() > 10 && read.addresses.iter().all(|read| *read == address));
    }
}
