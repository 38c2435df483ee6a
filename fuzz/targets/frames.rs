//! Whatever bytes come over the links of an agent, it answers or ends the link; it never panics, and what it keeps is
//! bounded by its windows.
//!
//! The input is what one link after another carries: a byte that says which link and how much, then so many bytes.

#![no_main]

use std::time::Duration;

use bytes::{Buf, Bytes};
use libfuzzer_sys::fuzz_target;
use link::frame::{FlowId, HEADER_LEN, Header, Kind};
use link::mux::{Config, Event, LinkId, Mux, ProtocolError, Role};

const WINDOW: u64 = 1 << 10;
const FLOWS: usize = 16;

fuzz_target!(|data: &[u8]| {
    let config = Config { window: WINDOW, max_window: WINDOW, max_flows: FLOWS, ..Config::default() };
    let mut mux = Mux::new(Role::Agent, config);
    let ours = mux.open(Bytes::from_static(b"to"), Duration::ZERO).expect("not closed");
    mux.write(ours, Bytes::from_static(b"early"), Duration::ZERO);
    let mut links = [0, 1].map(|number| Stream::new(&mut mux, number));
    let mut number = links.len() as u32;
    let mut data = data;
    let mut now = Duration::ZERO;
    while let Some((what, rest)) = data.split_first() {
        let (part, rest) = rest.split_at(rest.len().min(usize::from(what >> 1)));
        data = rest;
        now += Duration::from_millis(part.len() as u64);
        let stream = &mut links[usize::from(what & 1)];
        stream.buffer.extend_from_slice(part);
        if part.is_empty() || stream.read(&mut mux, now).is_err() {
            mux.link_lost(stream.link);
            *stream = Stream::new(&mut mux, number);
            number += 1;
        }
        follow(&mut mux, now);
        let kept = mux.bytes_kept();
        assert!(kept.1 <= WINDOW * (FLOWS as u64 + 2), "{kept:?}");
        for stream in &links {
            mux.poll_transmit(stream.link, &mut Vec::new(), 1 << 16, 64, now);
        }
        mux.handle_timeout(now);
    }
});

struct Stream {
    link: LinkId,
    buffer: Vec<u8>,
}

impl Stream {
    fn new(mux: &mut Mux, number: u32) -> Self {
        Stream { link: mux.link_up(number, Duration::ZERO).expect("a free number"), buffer: Vec::new() }
    }

    fn read(&mut self, mux: &mut Mux, now: Duration) -> Result<(), ProtocolError> {
        let mut rest = &self.buffer[..];
        while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
            let mut header = Header::decode(header)?;
            let payload = &rest[HEADER_LEN..];
            let len = payload.len().min(header.len as usize);
            if header.kind == Kind::Data && len > 0 {
                // What is there of it, the rest as a frame of its own.
                if let Some(skip) = mux.handle_data(self.link, header.flow, header.offset, &payload[..len], now)? {
                    let half = (len - skip) / 2;
                    mux.delivered(header.flow, half, &payload[skip + half..len], now);
                }
            } else if len == header.len as usize {
                mux.handle_frame(self.link, header, &payload[..len], now)?;
            } else {
                break;
            }
            rest.advance(HEADER_LEN + len);
            header.len -= len as u32;
            if header.len > 0 {
                header.offset = header.offset.saturating_add(len as u64);
                self.buffer = header.encode().to_vec();
                return Ok(());
            }
        }
        self.buffer = rest.to_vec();
        Ok(())
    }
}

/// A program above the mux that answers what is asked of it.
fn follow(mux: &mut Mux, now: Duration) {
    while let Some(event) = mux.poll_event() {
        match event {
            Event::Offered { flow, payload } if payload.is_empty() => mux.refuse(flow, link::Reset::Refused),
            Event::Offered { flow, .. } => mux.accept(flow),
            Event::Changed(flow) => answer(mux, flow, now),
            Event::Silent(_) | Event::Wanted(_) => {}
        }
    }
}

fn answer(mux: &mut Mux, flow: FlowId, now: Duration) {
    while let Some(bytes) = mux.take(flow) {
        mux.delivered(flow, bytes.len(), &[], now);
        let len = mux.room(flow).min(bytes.len());
        mux.write(flow, bytes.slice(..len), now);
    }
    if mux.at_end(flow) {
        mux.end_taken(flow, now);
        mux.finish(flow);
        mux.release(flow);
    }
    if matches!(mux.phase(flow), link::mux::Phase::Ended(_)) {
        mux.release(flow);
    }
}
