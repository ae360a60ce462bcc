//! The pods' one service, and its client: TCP on port 80 that sends back what it got. It does not know who calls.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Where pods listen.
pub const PORT: u16 = 80;
/// More than one TCP window and many segments: a path that only passes small packets, or no TCP at all, fails.
pub const SIZE: usize = 64 * 1024;

/// Serves until killed, on both families.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("failed to listen on {port}"))?;
    serve_on(&listener);
    Ok(())
}

fn serve_on(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        std::thread::spawn(move || {
            let mut all = Vec::with_capacity(SIZE);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            // The whole of it first: each direction is proven by itself.
            if (&stream).take(16 * SIZE as u64).read_to_end(&mut all).is_ok() {
                let _ = stream.write_all(&all);
            }
        });
    }
}

/// Sends [`SIZE`] bytes, gets them back, and compares.
///
/// # Errors
/// No connection within 10 s, silence for 10 s, or other bytes.
pub fn call(to: IpAddr, port: u16) -> Result<()> {
    let address = SocketAddr::new(to, port);
    // A lost SYN is sent again after 1, 3 and 7 s; what a busy machine holds up is lost to nobody.
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| format!("failed to connect to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // Bytes whose order is seen: 251 is no divisor of any segment's size.
    let sent: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    stream.write_all(&sent).context("failed to send")?;
    stream.shutdown(Shutdown::Write)?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).with_context(|| format!("failed to receive after {} bytes", got.len()))?;
    ensure!(got == sent, "{} bytes came back of {SIZE}", got.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve_on(&listener));
        call(address.ip(), address.port()).unwrap();
    }
}
