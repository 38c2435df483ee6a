//! A TUN device that hands out whole segmentation-offload packets, in a namespace of choice.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use crate::testbed::net;

/// Bytes of `struct virtio_net_hdr` before each packet.
pub(crate) const HEADER: usize = 10;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
}

/// Opens a new device; it vanishes with the file.
#[expect(unsafe_code, reason = "TUN devices are made by ioctl")]
pub(crate) fn open(namespace: &str, name: &str) -> Result<File> {
    net::inside(namespace, || {
        let file = File::options().read(true).write(true).open("/dev/net/tun").context("cannot open /dev/net/tun")?;
        // SAFETY: ifreq is plain data, for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).context("flags fit")?;
        // SAFETY: the descriptor is open and the request outlives the call.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }.context("cannot make a TUN device")?;
        let offload = (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6).try_into().context("flags fit")?;
        // SAFETY: the descriptor is open; the argument is a number.
        unsafe { ioctl::set_offload(file.as_raw_fd(), offload) }.context("cannot set offloads")?;
        Ok(file)
    })
}

/// Whether a device of that name is there.
pub(crate) fn exists(namespace: &str, name: &str) -> bool {
    let find = || {
        let mut text = String::new();
        File::open("/proc/thread-self/net/dev")?.read_to_string(&mut text)?;
        Ok(text.lines().any(|line| line.trim_start().starts_with(&format!("{name}:"))))
    };
    net::inside(namespace, find).unwrap_or(false)
}
