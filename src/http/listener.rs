//! Binds a listener: one address, or all interfaces of both families.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

use super::access::Access;

/// Connections that the system accepts before this process does.
const BACKLOG: u32 = 1024;

/// Bytes that the system buffers for a client that does not read. Its own maximum is some megabytes,
/// which count as memory of the container.
const SEND_BUFFER: usize = 256 * 1024;

/// A listener that is bound but not served yet, so that an address in use fails the start.
#[derive(Debug)]
pub struct Bound {
    pub(super) listener: TcpListener,
    /// Its address; with port 0, the port that the system chose.
    pub addr: SocketAddr,
    /// Who may use it.
    pub(super) access: Access,
}

impl Bound {
    /// The same listener, with a certificate, with tokens, or with both.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

/// Binds a listener. `[::]` serves IPv4 as well, whatever the system's default; without IPv6 it is
/// `0.0.0.0`.
///
/// # Errors
/// If the address cannot be bound.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<Bound> {
    let listener = match listen(addr) {
        Err(error) if is_any_v6(addr) && is_without_ipv6(&error) => {
            let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()));
            tracing::warn!(
                error = %error,
                "this machine has no IPv6: listening on {ipv4} instead of {addr}"
            );
            listen(ipv4)
        }
        listener => listener,
    };
    let listener = listener.with_context(|| format!("cannot listen on {addr}"))?;
    let addr = listener
        .local_addr()
        .context("a bound socket has an address")?;
    Ok(Bound {
        listener,
        addr,
        access: Access::default(),
    })
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    if is_any_v6(addr) {
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // The listener's connections inherit it.
    SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn is_any_v6(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// Whether the kernel was built or started without IPv6, or has it disabled.
fn is_without_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT)
    )
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    #[tokio::test]
    async fn all_interfaces_means_both_families() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let bound = bind(any).await.expect("a free port");
        let port = bound.addr.port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            assert!(bound.addr.is_ipv6());
            assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok());
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        let first = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let error = bind(first.addr).await.expect_err("it is in use");
        assert!(error.to_string().contains("cannot listen on 127.0.0.1:"));
    }
}
