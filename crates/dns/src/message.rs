//! Reads questions and answers just as far as a forwarder must, and keeps the rest as it came. Pure.
//!
//! Names are decoded by hickory-proto; counts, TTLs and EDNS are walked here, so that an answer keeps its bytes (any
//! record type, any case) and only id, question, TTLs and the EDNS buffer size are written over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

const HEADER: usize = 12;
/// QR, opcode, TC, RD, RA, AD, CD (RFC 1035 section 4.1.1, RFC 4035 section 3).
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const AUTHENTIC: u16 = 0x0020;
const CHECKING_DISABLED: u16 = 0x0010;
/// The flags of a question that change its answer.
const ASKED_FLAGS: u16 = RECURSION_DESIRED | AUTHENTIC | CHECKING_DISABLED;
/// In the TTL field of an OPT record (RFC 6891 section 6.1.3).
const DNSSEC_OK: u16 = 0x8000;

const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const TYPE_IXFR: u16 = 251;
const TYPE_AXFR: u16 = 252;
pub(crate) const CLASS_IN: u16 = 1;

pub(crate) const NO_ERROR: u16 = 0;
const FORMAT_ERROR: u16 = 1;
pub(crate) const SERVER_FAILURE: u16 = 2;
pub(crate) const NAME_ERROR: u16 = 3;
const NOT_IMPLEMENTED: u16 = 4;
const BAD_VERSION: u16 = 16;

/// What a UDP answer may have when the question says nothing (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// The buffer size announced upstream and to programs: fits every path unfragmented (DNS flag day 2020).
const OWN_BUFFER: u16 = 1232;
/// The longest payload of a UDP datagram over IPv4.
const LARGEST_DATAGRAM: usize = 65_507;

/// One question of a program.
#[derive(Clone, Debug)]
pub struct Query {
    id: u16,
    flags: u16,
    name: Name,
    record_type: u16,
    /// Name, type and class as they came, for the case of the letters.
    question: Box<[u8]>,
    edns: Option<Edns>,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    buffer: u16,
    dnssec_ok: bool,
}

/// Why a message is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Not a question at all: say nothing.
    Ignore,
    /// The asker is told so by this response.
    Answer(Vec<u8>),
}

/// Questions of one key have one answer: name (in any case), type, class, flags and EDNS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    question: Box<[u8]>,
    flags: u16,
    dnssec_ok: Option<bool>,
}

impl Query {
    pub fn parse(message: &[u8]) -> Result<Query, Rejected> {
        let header = Header::read(message).ok_or(Rejected::Ignore)?;
        if header.flags & RESPONSE != 0 {
            return Err(Rejected::Ignore);
        }
        let reject = |rcode| Rejected::Answer(header_only(&header, rcode));
        if header.flags & OPCODE != 0 {
            return Err(reject(NOT_IMPLEMENTED));
        }
        let (query, version) = Query::read_body(message, &header).ok_or_else(|| reject(FORMAT_ERROR))?;
        match version {
            0 if matches!(query.record_type, TYPE_AXFR | TYPE_IXFR) => {
                Err(Rejected::Answer(query.fail(NOT_IMPLEMENTED)))
            }
            0 => Ok(query),
            _ => Err(Rejected::Answer(query.fail(BAD_VERSION))),
        }
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The number of the record type asked for.
    pub fn record_type(&self) -> u16 {
        self.record_type
    }

    /// A plain question of our own: IN class, recursion desired, no EDNS.
    pub(crate) fn new(name: &Name, record_type: u16) -> Query {
        let mut question = Vec::with_capacity(64);
        for label in name.iter() {
            question.push(label.len() as u8);
            question.extend_from_slice(label);
        }
        question.push(0);
        question.extend_from_slice(&record_type.to_be_bytes());
        question.extend_from_slice(&CLASS_IN.to_be_bytes());
        let question = question.into_boxed_slice();
        Query { id: 0, flags: RECURSION_DESIRED, name: name.clone(), record_type, question, edns: None }
    }

    pub(crate) fn key(&self) -> Key {
        let mut question = self.question.clone();
        let name_len = question.len() - 4;
        // Length bytes are below 64 and so never letters.
        question[..name_len].make_ascii_lowercase();
        Key { question, flags: self.flags, dnssec_ok: self.edns.map(|edns| edns.dnssec_ok) }
    }

    /// The question as it is sent on: with an id and a buffer size of ours, without the asker's EDNS options, which
    /// are between it and us (RFC 6891 section 6.2.6).
    pub(crate) fn to_upstream(&self, id: u16) -> Bytes {
        let mut message = Vec::with_capacity(HEADER + self.question.len() + 11);
        self.write_head(&mut message, id, self.flags);
        Bytes::from(message)
    }

    /// The longest response that the asker takes over UDP.
    pub(crate) fn udp_room(&self) -> usize {
        usize::from(self.edns.map_or(PLAIN_UDP, |edns| edns.buffer.max(PLAIN_UDP))).min(LARGEST_DATAGRAM)
    }

    /// `answer`, `age` old, for this asker; when it does not fit into `room`, an empty one that says so.
    pub(crate) fn respond(&self, answer: &Answer, age: Duration, room: usize) -> Vec<u8> {
        if answer.bytes.len() > room {
            let mut message = Vec::new();
            self.write_head(&mut message, self.id, answer.flags & !ASKED_FLAGS | self.flags | TRUNCATED);
            return message;
        }
        let mut message = answer.bytes.to_vec();
        message[..2].copy_from_slice(&self.id.to_be_bytes());
        message[HEADER..HEADER + self.question.len()].copy_from_slice(&self.question);
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for &at in &answer.ttls {
            let ttl = read_u32(&message, at).unwrap_or(0).saturating_sub(age);
            message[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        if let Some(at) = answer.opt_class {
            message[at..at + 2].copy_from_slice(&OWN_BUFFER.to_be_bytes());
        }
        // A hostile server's names may point into what was just written.
        let message = Bytes::from(message);
        match Answer::parse(message.clone()) {
            Some(_) => message.into(),
            None => self.fail(SERVER_FAILURE),
        }
    }

    /// A response without records.
    pub(crate) fn fail(&self, rcode: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER + self.question.len() + 11);
        self.write_head(&mut message, self.id, RESPONSE | RECURSION_AVAILABLE | self.flags | rcode & 0xf);
        if self.edns.is_some() {
            // The upper bits of the response code (RFC 6891 section 6.1.3): byte 5 of the OPT record.
            let at = message.len() - 6;
            message[at] = (rcode >> 4) as u8;
        }
        message
    }

    /// Header, question, and an OPT record where the asker had one.
    fn write_head(&self, message: &mut Vec<u8>, id: u16, flags: u16) {
        let additional = u16::from(self.edns.is_some());
        for field in [id, flags, 1, 0, 0, additional] {
            message.extend_from_slice(&field.to_be_bytes());
        }
        message.extend_from_slice(&self.question);
        if let Some(edns) = self.edns {
            message.push(0);
            for field in [TYPE_OPT, OWN_BUFFER, 0, if edns.dnssec_ok { DNSSEC_OK } else { 0 }, 0] {
                message.extend_from_slice(&field.to_be_bytes());
            }
        }
    }

    /// The query and the EDNS version it speaks, or `None` when malformed.
    fn read_body(message: &[u8], header: &Header) -> Option<(Query, u8)> {
        let mut decoder = BinDecoder::new(message);
        decoder.read_slice(HEADER).ok()?;
        let question = read_question(&mut decoder, header)?;
        let (mut edns, mut version) = (None, 0);
        for (section, record) in records(&mut decoder, header) {
            let record = record?;
            if record.record_type != TYPE_OPT || section != Section::Additional {
                continue;
            }
            if edns.is_some() {
                return None;
            }
            version = (record.ttl >> 16) as u8;
            edns = Some(Edns { buffer: record.class, dnssec_ok: record.ttl as u16 & DNSSEC_OK != 0 });
        }
        let query = Query {
            id: header.id,
            flags: header.flags & ASKED_FLAGS,
            name: question.name,
            record_type: question.record_type,
            question: question.bytes.into(),
            edns,
        };
        Some((query, version))
    }
}

/// One answer of a name server, as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    bytes: Bytes,
    flags: u16,
    rcode: u16,
    /// Where the bytes of the question end.
    question_end: usize,
    /// Where the TTLs are (not that of OPT, which is none).
    ttls: Vec<usize>,
    opt_class: Option<usize>,
    has_answers: bool,
    /// Seconds it may be kept: the smallest TTL, or for negative answers what the SOA says (RFC 2308 section 5).
    lifetime: Option<u32>,
    addresses: Vec<(IpAddr, Duration)>,
}

impl Answer {
    /// `None` when malformed, or without just one question.
    pub fn parse(message: Bytes) -> Option<Answer> {
        let header = Header::read(&message)?;
        if header.flags & RESPONSE == 0 || header.flags & OPCODE != 0 {
            return None;
        }
        let mut decoder = BinDecoder::new(&message);
        decoder.read_slice(HEADER).ok()?;
        read_question(&mut decoder, &header)?;
        let mut answer = Answer {
            bytes: message.clone(),
            flags: header.flags,
            rcode: header.flags & 0xf,
            question_end: decoder.index(),
            ttls: Vec::new(),
            opt_class: None,
            has_answers: header.answers > 0,
            lifetime: None,
            addresses: Vec::new(),
        };
        for (section, record) in records(&mut decoder, &header) {
            answer.take(section, &record?);
        }
        Some(answer)
    }

    /// Every address in it, with its time to live.
    pub fn addresses(&self) -> &[(IpAddr, Duration)] {
        &self.addresses
    }

    pub(crate) fn rcode(&self) -> u16 {
        self.rcode
    }

    /// The name exists and has records of the type (or an alias).
    pub(crate) fn is_positive(&self) -> bool {
        self.rcode == NO_ERROR && self.has_answers
    }

    pub(crate) fn is_truncated(&self) -> bool {
        self.flags & TRUNCATED != 0
    }

    pub(crate) fn lifetime(&self) -> Option<Duration> {
        self.lifetime.map(|secs| Duration::from_secs(secs.into()))
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it answers the question that `query` sent on as `id`.
    pub(crate) fn answers(&self, query: &Query, id: u16) -> bool {
        self.bytes[..2] == id.to_be_bytes() && same_question(&self.bytes[HEADER..self.question_end], &query.question)
    }

    fn take(&mut self, section: Section, record: &Record<'_>) {
        if record.record_type == TYPE_OPT {
            self.opt_class = Some(record.ttl_at - 2);
            self.rcode |= (record.ttl >> 24) as u16 * 16;
            return;
        }
        self.ttls.push(record.ttl_at);
        // RFC 2181 section 8: a TTL with the top bit set is zero.
        let ttl = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl };
        let address = match (record.class, record.record_type) {
            (CLASS_IN, TYPE_A) => <[u8; 4]>::try_from(record.data).ok().map(|ip| Ipv4Addr::from(ip).into()),
            (CLASS_IN, TYPE_AAAA) => <[u8; 16]>::try_from(record.data).ok().map(|ip| Ipv6Addr::from(ip).into()),
            _ => None,
        };
        self.addresses.extend(address.map(|ip| (ip, Duration::from_secs(ttl.into()))));
        let keep = match section {
            Section::Answer => Some(ttl),
            // The last field of a SOA is the time to live of negative answers.
            Section::Authority if !self.has_answers && record.record_type == TYPE_SOA => {
                record.data.len().checked_sub(4).and_then(|at| read_u32(record.data, at)).map(|least| least.min(ttl))
            }
            _ => None,
        };
        self.lifetime = match (self.lifetime, keep) {
            (Some(have), Some(new)) => Some(have.min(new)),
            (have, new) => have.or(new),
        };
    }
}

/// Whether `response` can be the answer to `query`: id and question are the same. A server that could not read the
/// question may leave it out.
pub(crate) fn is_response_to(response: &[u8], query: &[u8]) -> bool {
    let (Some(ours), Some(theirs)) = (Header::read(query), Header::read(response)) else { return false };
    if ours.id != theirs.id || theirs.flags & RESPONSE == 0 {
        return false;
    }
    if theirs.questions == 0 {
        return theirs.flags & 0xf != NO_ERROR;
    }
    let question = |message, header| {
        let mut decoder = BinDecoder::new(message);
        decoder.read_slice(HEADER).ok()?;
        read_question(&mut decoder, header).map(|question| question.bytes)
    };
    match (question(query, &ours), question(response, &theirs)) {
        (Some(asked), Some(answered)) => same_question(asked, answered),
        _ => false,
    }
}

/// The longest UDP response that the raw question allows.
pub(crate) fn udp_room(query: &[u8]) -> usize {
    Query::parse(query).map_or(usize::from(PLAIN_UDP), |query| query.udp_room())
}

pub(crate) fn is_truncated(response: &[u8]) -> bool {
    Header::read(response).is_some_and(|header| header.flags & TRUNCATED != 0)
}

/// The four bits of the header; enough to tell failures.
pub(crate) fn plain_rcode(response: &[u8]) -> Option<u16> {
    Header::read(response).map(|header| header.flags & 0xf)
}

/// Reads any bytes as a question and as an answer, and writes what follows from them. For fuzzing: must never panic,
/// and what it wrote must read back.
#[doc(hidden)]
pub fn fuzz_message(bytes: &[u8]) {
    let _ = is_response_to(bytes, bytes);
    match Query::parse(bytes) {
        Ok(query) => {
            let sent = query.to_upstream(query.id);
            let again = Query::parse(&sent).expect("a question that was read can be read again");
            assert_eq!(again.key(), query.key());
            let failure = Answer::parse(query.fail(SERVER_FAILURE).into()).expect("our own failure reads back");
            assert!(failure.answers(&query, query.id) && failure.rcode() == SERVER_FAILURE);
            assert!(query.udp_room() >= usize::from(PLAIN_UDP));
        }
        Err(Rejected::Answer(response)) => assert!(Header::read(&response).is_some_and(|h| h.flags & RESPONSE != 0)),
        Err(Rejected::Ignore) => {}
    }
    let Some(answer) = Answer::parse(Bytes::copy_from_slice(bytes)) else { return };
    let question = answer.bytes[HEADER..answer.question_end].to_vec();
    let asked = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &question].concat();
    if let Ok(query) = Query::parse(&asked) {
        let response = query.respond(&answer, Duration::from_secs(3), bytes.len());
        let again = Answer::parse(response.into()).expect("an answer that was read can be read again");
        assert!(again.answers(&query, query.id));
        let short = Answer::parse(query.respond(&answer, Duration::ZERO, bytes.len() - 1).into());
        assert!(short.expect("a truncated answer reads back").is_truncated());
    }
}

struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
    authorities: u16,
    additionals: u16,
}

impl Header {
    fn read(message: &[u8]) -> Option<Header> {
        let field = |at| read_u16(message, at);
        Some(Header {
            id: field(0)?,
            flags: field(2)?,
            questions: field(4)?,
            answers: field(6)?,
            authorities: field(8)?,
            additionals: field(10)?,
        })
    }
}

struct Question<'a> {
    name: Name,
    record_type: u16,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

struct Record<'a> {
    record_type: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
    data: &'a [u8],
}

/// The only question, which directly follows the header. A compressed name is refused: nothing stands before it that
/// it could refer to, and its bytes are to be comparable.
fn read_question<'a>(decoder: &mut BinDecoder<'a>, header: &Header) -> Option<Question<'a>> {
    if header.questions != 1 {
        return None;
    }
    let start = decoder.index();
    let name = Name::read(decoder).ok()?;
    if decoder.index() - start != name.iter().map(|label| label.len() + 1).sum::<usize>() + 1 {
        return None;
    }
    let record_type = decoder.read_u16().ok()?.unverified();
    decoder.read_u16().ok()?;
    Some(Question { name, record_type, bytes: decoder.slice_from(start).ok()? })
}

/// Every record after the question; `None` once, at the first malformed one.
fn records<'d, 'a>(
    decoder: &'d mut BinDecoder<'a>,
    header: &Header,
) -> impl Iterator<Item = (Section, Option<Record<'a>>)> + use<'d, 'a> {
    let sections = [
        (Section::Answer, header.answers),
        (Section::Authority, header.authorities),
        (Section::Additional, header.additionals),
    ];
    sections
        .into_iter()
        .flat_map(|(section, count)| (0..count).map(move |_| section))
        .map(move |section| (section, read_record(decoder)))
}

fn read_record<'a>(decoder: &mut BinDecoder<'a>) -> Option<Record<'a>> {
    Name::read(decoder).ok()?;
    let record_type = decoder.read_u16().ok()?.unverified();
    let class = decoder.read_u16().ok()?.unverified();
    let ttl_at = decoder.index();
    let ttl = decoder.read_u32().ok()?.unverified();
    let len = decoder.read_u16().ok()?.unverified();
    let data = decoder.read_slice(len.into()).ok()?.unverified();
    Some(Record { record_type, class, ttl, ttl_at, data })
}

/// Equal but for the case of the name; type and class are the last four bytes.
fn same_question(a: &[u8], b: &[u8]) -> bool {
    match (a.split_last_chunk::<4>(), b.split_last_chunk::<4>()) {
        (Some((name_a, rest_a)), Some((name_b, rest_b))) => rest_a == rest_b && name_a.eq_ignore_ascii_case(name_b),
        _ => false,
    }
}

fn header_only(header: &Header, rcode: u16) -> Vec<u8> {
    let flags = RESPONSE | RECURSION_AVAILABLE | header.flags & (OPCODE | RECURSION_DESIRED) | rcode;
    [header.id, flags, 0, 0, 0, 0].iter().flat_map(|field| field.to_be_bytes()).collect()
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests;
