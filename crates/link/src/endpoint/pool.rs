//! Buffers that bytes are read into and that are kept until the other side acknowledges them. They are used again, the
//! last one first: fresh memory for each read costs a tenth of the CPU time in page faults (measured, four flows).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Most bytes read from a socket at once.
const READ: usize = 128 << 10;
/// Reads up to this size are copied, so that what is kept for a slow peer takes at most four times its memory.
const SMALL: usize = READ / 4;
/// Free buffers kept: 2 MiB, what two bulk flows have under way.
const KEPT: usize = 16;

#[derive(Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// Reads what the socket has, at most `max` bytes. Empty at its end.
    pub(super) fn read(self: &Arc<Self>, socket: &TcpStream, max: usize) -> io::Result<Bytes> {
        let free = self.free().pop();
        let mut buffer = Buffer { bytes: free.unwrap_or_else(|| Vec::with_capacity(READ)), pool: self.clone() };
        let len = read(socket, &mut buffer.bytes, max.min(READ))?;
        Ok(if len > SMALL { Bytes::from_owner(buffer) } else { Bytes::copy_from_slice(&buffer.bytes) })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes back to the pool.
struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.pool.free();
        if free.len() < KEPT {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            free.push(bytes);
        }
    }
}

/// Reads up to `max` bytes. If they were fewer the socket is empty, and known to be: as in tokio's own `poll_read`, that
/// saves asking it again.
fn read(socket: &TcpStream, buffer: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    let mut len = 0;
    let result = socket.try_io(Interest::READABLE, || {
        len = socket.try_read_buf(&mut buffer.limit(max))?;
        if len > 0 && len < max { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
    });
    if len > 0 { Ok(len) } else { result }
}
