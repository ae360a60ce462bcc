//! Where a server listens and how to reach it. Knows nothing of the protocol.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::Error;
#[cfg(feature = "ssl")]
use crate::ssl::{self, SslFiles};

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

/// `unix:PATH`, or `tcp:HOST:PORT` or `ssl:HOST:PORT` with IPv6 addresses in brackets (ovsdb(7), "Connection Methods").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    /// The text says only where: see [`Endpoint::with_ssl`].
    #[cfg(feature = "ssl")]
    Ssl {
        host: String,
        port: u16,
        files: SslFiles,
    },
}

const FORMS: &str = "expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT";

/// `ssl` is refused.
impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |rule| Error::Endpoint { endpoint: text.to_owned(), rule };
        let (scheme, rest) = text.split_once(':').ok_or_else(|| refused(FORMS))?;
        match scheme {
            "unix" if rest.is_empty() => Err(refused("the path is empty")),
            "unix" => Ok(Endpoint::Unix(rest.into())),
            "tcp" => host_and_port(rest).map(|(host, port)| Endpoint::Tcp { host, port }).map_err(refused),
            "ssl" => Err(refused("ssl needs a private key, a certificate and a CA's certificate")),
            _ => Err(refused(FORMS)),
        }
    }
}

#[cfg(feature = "ssl")]
impl Endpoint {
    /// Reads an endpoint that may be `ssl`, with the files for it, which are opened when it connects.
    pub fn with_ssl(text: &str, files: Option<SslFiles>) -> Result<Self, Error> {
        match (text.strip_prefix("ssl:"), files) {
            (Some(rest), Some(files)) => match host_and_port(rest) {
                Ok((host, port)) => Ok(Endpoint::Ssl { host, port, files }),
                Err(rule) => Err(Error::Endpoint { endpoint: text.to_owned(), rule }),
            },
            _ => text.parse(),
        }
    }
}

/// Or the rule that is broken.
fn host_and_port(text: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or(FORMS)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bracketed.is_none() && host.contains(':') {
        return Err("an IPv6 address must stand in brackets");
    }
    let host = bracketed.unwrap_or(host);
    if host.is_empty() {
        return Err("the host is empty");
    }
    match port.parse() {
        Ok(port) if port != 0 => Ok((host.to_owned(), port)),
        _ => Err("the port is not a number from 1 to 65535"),
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Requests are small and waited for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Endpoint::Unix(path) => return write!(f, "unix:{}", path.display()),
            Endpoint::Tcp { host, port } => ("tcp", host, port),
            #[cfg(feature = "ssl")]
            Endpoint::Ssl { host, port, .. } => ("ssl", host, port),
        };
        if host.contains(':') { write!(f, "{scheme}:[{host}]:{port}") } else { write!(f, "{scheme}:{host}:{port}") }
    }
}

impl Connector for Endpoint {
    type Stream = Box<dyn Stream>;

    async fn connect(&mut self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Endpoint::Tcp { host, port } => Box::new(connect_tcp(host, *port).await?),
            #[cfg(feature = "ssl")]
            Endpoint::Ssl { host, port, files } => Box::new(ssl::connect(connect_tcp(host, *port).await?, host, files).await?),
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
            ("/run/db.sock", "expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT"),
            ("http://h:1", "expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT"),
            ("unix:", "the path is empty"),
            ("tcp:6640", "expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT"),
            ("tcp:::1:6640", "an IPv6 address must stand in brackets"),
            ("tcp::6640", "the host is empty"),
            ("tcp:h:0", "the port is not a number from 1 to 65535"),
            ("tcp:h:65536", "the port is not a number from 1 to 65535"),
            ("ssl:h:6640", "ssl needs a private key, a certificate and a CA's certificate"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap_err().to_string(), format!("endpoint {text:?}: {rule}"));
        }
    }

    #[cfg(feature = "ssl")]
    #[test]
    fn ssl_endpoints_come_with_their_files_and_the_others_without() {
        let files = || Some(SslFiles { private_key: "k".into(), certificate: "c".into(), ca_cert: "ca".into() });
        let endpoint = Endpoint::with_ssl("ssl:[::1]:6640", files()).unwrap();
        assert_eq!(endpoint.to_string(), "ssl:[::1]:6640");
        assert!(matches!(endpoint, Endpoint::Ssl { port: 6640, files: SslFiles { ref ca_cert, .. }, .. } if ca_cert == "ca"));
        assert_eq!(Endpoint::with_ssl("unix:/a", files()).unwrap(), Endpoint::Unix("/a".into()));
        for (text, files, rule) in [
            ("ssl:h:6640", None, "ssl needs a private key, a certificate and a CA's certificate"),
            ("ssl:h:0", files(), "the port is not a number from 1 to 65535"),
            ("ssl:h", files(), "expected unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT"),
        ] {
            assert_eq!(Endpoint::with_ssl(text, files).unwrap_err().to_string(), format!("endpoint {text:?}: {rule}"));
        }
    }
}
