//! Where a server listens and how to reach it. Knows nothing of the protocol.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::Error;

/// What a connection needs of a transport.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Makes a fresh stream to the same server each time it is asked.
pub trait Connector: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn connect(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Named in logs and reasons.
    fn describe(&self) -> String;
}

/// `unix:PATH`, or `tcp:HOST:PORT` with IPv6 addresses in brackets (ovsdb(7), "Connection Methods").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |rule| Error::Endpoint { endpoint: text.to_owned(), rule };
        let (scheme, rest) = text.split_once(':').ok_or_else(|| refused("expected unix:PATH or tcp:HOST:PORT"))?;
        match scheme {
            "unix" if rest.is_empty() => Err(refused("the path is empty")),
            "unix" => Ok(Endpoint::Unix(rest.into())),
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(|| refused("expected tcp:HOST:PORT"))?;
                let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                if bracketed.is_none() && host.contains(':') {
                    return Err(refused("an IPv6 address must stand in brackets"));
                }
                let host = bracketed.unwrap_or(host);
                if host.is_empty() {
                    return Err(refused("the host is empty"));
                }
                match port.parse() {
                    Ok(port) if port != 0 => Ok(Endpoint::Tcp { host: host.to_owned(), port }),
                    _ => Err(refused("the port is not a number from 1 to 65535")),
                }
            }
            "ssl" => Err(refused("ssl is not supported")),
            _ => Err(refused("expected unix:PATH or tcp:HOST:PORT")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Connector for Endpoint {
    type Stream = Box<dyn Stream>;

    async fn connect(&mut self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // Requests are small and waited for.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    fn describe(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back_as_written() {
        for text in ["unix:/run/openvswitch/db.sock", "tcp:127.0.0.1:6640", "tcp:[::1]:6640", "tcp:host:1"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refused_endpoints_name_the_rule() {
        for (text, rule) in [
            ("/run/db.sock", "expected unix:PATH or tcp:HOST:PORT"),
            ("unix:", "the path is empty"),
            ("tcp:6640", "expected tcp:HOST:PORT"),
            ("tcp:::1:6640", "an IPv6 address must stand in brackets"),
            ("tcp::6640", "the host is empty"),
            ("tcp:h:0", "the port is not a number from 1 to 65535"),
            ("tcp:h:65536", "the port is not a number from 1 to 65535"),
            ("ssl:h:6640", "ssl is not supported"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap_err().to_string(), format!("endpoint {text:?}: {rule}"));
        }
    }
}
