//! Liveness by HTTP: 200 while both the main loop and the dead-man thread have been seen within 5 s, 503 otherwise.
//!
//! The port is open to the cluster, so a peer that connects and says nothing must not hold up kubelet's probe: a few
//! connections are served side by side from fixed memory, and the oldest makes room for the newest.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pgwarden_supervisor::clock::{SECOND, boottime_ns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::deadman::DeadMan;

/// A thread not seen for this long is stuck.
const STUCK: u64 = 5 * SECOND;

/// A peer that has not asked by then never will.
const PATIENCE: u64 = 2 * SECOND;

const PEERS: usize = 16;

const ALIVE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
const STUCK_LOOP: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 19\r\nConnection: close\r\n\r\nmain loop is stuck\n";
const STUCK_SWITCH: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 25\r\nConnection: close\r\n\r\ndead-man thread is stuck\n";

/// When the main loop was last seen alive.
#[derive(Debug, Default)]
pub(crate) struct LoopTick(AtomicU64);

impl LoopTick {
    pub(crate) fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// Opens the port on both address families where there are two, and starts the thread.
pub(crate) fn start(port: u16, tick: Arc<LoopTick>, switch: Arc<DeadMan>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    listener.set_nonblocking(true)?;
    let answer = move || answer(boottime_ns(), tick.0.load(Ordering::Relaxed), switch.last_tick());
    thread::Builder::new()
        .name("probe".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || serve(&listener, answer))?;
    Ok(())
}

fn answer(now: u64, main_loop: u64, switch: u64) -> &'static [u8] {
    if now.saturating_sub(switch) > STUCK {
        STUCK_SWITCH
    } else if now.saturating_sub(main_loop) > STUCK {
        STUCK_LOOP
    } else {
        ALIVE
    }
}

struct Peer {
    stream: TcpStream,
    since: u64,
}

fn serve(listener: &TcpListener, answer: impl Fn() -> &'static [u8]) {
    let mut peers: [Option<Peer>; PEERS] = [const { None }; PEERS];
    loop {
        wait(listener, &peers);
        let now = boottime_ns();
        for slot in &mut peers {
            let over = slot.as_mut().is_some_and(|peer| {
                now.saturating_sub(peer.since) > PATIENCE || attend(&mut peer.stream, answer())
            });
            if over {
                *slot = None;
            }
        }
        match listener.accept() {
            Ok((stream, _)) => {
                let oldest = peers.iter_mut().min_by_key(|slot| slot.as_ref().map_or(0, |peer| peer.since));
                if let (Some(slot), Ok(())) = (oldest, stream.set_nonblocking(true)) {
                    *slot = Some(Peer { stream, since: now });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, say: do not spin.
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn wait(listener: &TcpListener, peers: &[Option<Peer>; PEERS]) {
    let mut fds: [PollFd<'_>; PEERS + 1] = std::array::from_fn(|_| PollFd::new(listener, PollFlags::IN));
    let mut used = 1;
    for (fd, peer) in fds.iter_mut().skip(1).zip(peers.iter().flatten()) {
        *fd = PollFd::new(&peer.stream, PollFlags::IN);
        used += 1;
    }
    // With nobody there is nobody to lose patience with.
    let timeout = (used > 1).then_some(Timespec { tv_sec: 1, tv_nsec: 0 });
    let fds = fds.get_mut(..used).unwrap_or_default();
    let _ = poll(fds, timeout.as_ref());
}

/// Answers a peer that has asked. Whether it is done with.
fn attend(stream: &mut TcpStream, answer: &[u8]) -> bool {
    let mut request = [0; 2048];
    match stream.read(&mut request) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
        Ok(length) if length > 0 => {}
        _ => return true,
    }
    // It fits the empty buffer of a fresh connection.
    let _ = stream.write(answer);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_thread_is_noticed() {
        let now = 100 * SECOND;
        assert_eq!(answer(now, now, now), ALIVE);
        assert_eq!(answer(now, now - STUCK, now - STUCK), ALIVE);
        assert_eq!(answer(now, now - STUCK - 1, now), STUCK_LOOP);
        assert_eq!(answer(now, now, now - STUCK - 1), STUCK_SWITCH);
        assert_eq!(answer(now, now + 1, now + 1), ALIVE, "ticks may be newer than the look at the clock");
    }

    #[test]
    fn answers_are_whole() {
        for answer in [ALIVE, STUCK_LOOP, STUCK_SWITCH] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}");
        }
    }

    #[test]
    fn silent_peers_do_not_keep_others_out() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, || ALIVE));
        let silent: Vec<_> = (0..PEERS * 2).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text.as_bytes(), ALIVE);
        drop(silent);
    }
}
