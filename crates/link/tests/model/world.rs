//! The simulated world: programs above the muxes, cables below, and the checks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use link::frame::{FlowId, HEADER_LEN, Header, Kind};
use link::mux::{Bug, Config, Event, LinkId, Mux, Phase, Role};
use link::{ProtocolError, Reset};

/// Steps after which a world that has not come to its end never will.
const STEPS: usize = 400_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) flows: u32,
    pub(crate) cuts: u32,
    pub(crate) cables: usize,
    /// Longest direction of a flow, in bytes.
    pub(crate) length: u64,
    /// Flows whose programs read nothing until all others are through.
    pub(crate) stalled: u32,
}

impl Scenario {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5ce);
        Scenario {
            flows: 1 + random.below(12) as u32,
            cuts: random.below(8) as u32,
            cables: 1 + random.below(3) as usize,
            length: 1 << (4 + random.below(14)),
            stalled: random.below(3) as u32,
        }
    }
}

pub(crate) struct World {
    random: Random,
    scenario: Scenario,
    now: Duration,
    ends: [End; 2],
    cables: Vec<Cable>,
    next_cable: u32,
    opened: u32,
    cuts: u32,
}

/// One end of the session: the mux and the programs above it.
struct End {
    mux: Mux,
    programs: BTreeMap<FlowId, Program>,
}

/// One end of a flow.
struct Program {
    is_control: bool,
    /// Bytes it will send, and how many it has.
    length: u64,
    written: u64,
    finished: bool,
    /// It resets the flow when it has sent so much.
    resets_at: Option<u64>,
    read: u64,
    /// Handed out by the mux, not written on yet.
    lent: Option<Bytes>,
    stalled: bool,
    end_seen: bool,
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Finished,
    /// The program here reset it.
    Did(Reset),
    /// It was reset from elsewhere.
    Was(Reset),
}

/// A link: two byte streams that keep order and may lose their tails when cut.
struct Cable {
    number: u32,
    cut: bool,
    sides: [Side; 2],
}

#[derive(Default)]
struct Side {
    link: Option<LinkId>,
    gone: bool,
    /// Under way to this side: when, and what.
    under_way: VecDeque<(Duration, Vec<u8>)>,
    buffer: BytesMut,
    /// The DATA frame being read.
    data: Option<Header>,
}

/// Every byte of every flow is known from its place.
fn byte(flow: FlowId, from: usize, at: u64) -> u8 {
    let mixed = (u64::from(flow.0) << 40 | (from as u64) << 36 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, bug: Option<Bug>) -> Self {
        let config = Config { window: 4096, max_window: 64 << 10, growth_budget: 128 << 10, ..Config::default() };
        let ends = [Role::Client, Role::Agent].map(|role| {
            let mut mux = Mux::new(role, config.clone());
            mux.bug = bug;
            End { mux, programs: BTreeMap::new() }
        });
        let random = Random::new(seed);
        let mut world = World {
            random,
            scenario,
            now: Duration::ZERO,
            ends,
            cables: Vec::new(),
            next_cable: 0,
            opened: 0,
            cuts: 0,
        };
        for end in 0..2 {
            let program = world.program(FlowId::CONTROL);
            world.ends[end].programs.insert(FlowId::CONTROL, program);
        }
        world
    }

    pub(crate) fn run(mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step()?;
            if self.is_over() {
                return self.check_end();
            }
        }
        Err(format!("deadlock: {}", self.describe()))
    }

    fn step(&mut self) -> Result<(), String> {
        let end = self.random.below(2) as usize;
        match self.random.below(100) {
            0..5 => self.dial(),
            5..7 => self.cut(),
            7..12 => self.open(end),
            12..35 => self.transmit(end),
            35..70 => self.receive(end)?,
            70..97 => self.act(end)?,
            _ => self.pass_time(),
        }
        self.follow(end);
        Ok(())
    }

    // ---- cables

    fn dial(&mut self) {
        let live = self.cables.iter().filter(|cable| !cable.cut).count();
        if live >= self.scenario.cables {
            return;
        }
        // A number that is free at both ends may be used again.
        let lowest = (0..).find(|number| self.cables.iter().all(|cable| cable.number != *number));
        let number = lowest.filter(|_| self.random.below(2) == 0).unwrap_or(self.next_cable);
        self.next_cable = self.next_cable.max(number + 1);
        self.cables.push(Cable { number, cut: false, sides: Default::default() });
    }

    fn cut(&mut self) {
        if self.cuts >= self.scenario.cuts || self.cables.is_empty() || self.random.below(10) > 0 {
            return;
        }
        let which = self.random.below(self.cables.len() as u64) as usize;
        let cable = &mut self.cables[which];
        if !cable.cut {
            self.cuts += 1;
            cable.cut = true;
            for side in &mut cable.sides {
                let kept = self.random.below(side.under_way.len() as u64 + 1) as usize;
                side.under_way.truncate(kept);
                if let Some((_, last)) = side.under_way.back_mut() {
                    last.truncate(self.random.below(last.len() as u64 + 1) as usize);
                }
            }
        }
    }

    /// Brings up or gives up this end of some cable, or puts frames on it.
    fn transmit(&mut self, end: usize) {
        if self.cables.is_empty() {
            return;
        }
        let which = self.random.below(self.cables.len() as u64) as usize;
        let cable = &mut self.cables[which];
        let mux = &mut self.ends[end].mux;
        let side = &mut cable.sides[end];
        if side.gone {
            return;
        }
        let Some(link) = side.link else {
            side.link = mux.link_up(cable.number, self.now);
            side.gone = side.link.is_none() && cable.cut;
            return;
        };
        if cable.cut {
            if self.random.below(4) == 0 {
                mux.link_lost(link);
                side.gone = true;
            } else {
                // Written into nothing.
                mux.poll_transmit(link, &mut Vec::new(), 1 << 16, 8, self.now);
            }
            self.cables.retain(|cable| !cable.sides.iter().all(|side| side.gone));
            return;
        }
        let mut frames = Vec::new();
        let budget = 1 << self.random.below(17);
        mux.poll_transmit(link, &mut frames, budget, 1 + self.random.below(8) as usize, self.now);
        if frames.is_empty() {
            return;
        }
        let to = &mut cable.sides[1 - end];
        let longest = 1 << self.random.below(15);
        let delay = Duration::from_micros(self.random.below(longest));
        let at = to.under_way.back().map_or(self.now, |(at, _)| *at).max(self.now + delay);
        let bytes = frames.iter().flat_map(|frame| frame.header.iter().chain(&frame.payload[..])).copied().collect();
        to.under_way.push_back((at, bytes));
    }

    fn receive(&mut self, end: usize) -> Result<(), String> {
        if self.cables.is_empty() {
            return Ok(());
        }
        let which = self.random.below(self.cables.len() as u64) as usize;
        let side = &mut self.cables[which].sides[end];
        let Some(link) = side.link.filter(|_| !side.gone) else { return Ok(()) };
        while let Some((at, bytes)) = side.under_way.front_mut() {
            if *at > self.now {
                break;
            }
            let part = 1 + self.random.below(bytes.len().max(1) as u64) as usize;
            let part = part.min(bytes.len());
            side.buffer.extend_from_slice(&bytes[..part]);
            bytes.drain(..part);
            if !bytes.is_empty() {
                break;
            }
            side.under_way.pop_front();
        }
        let mut side = std::mem::take(&mut self.cables[which].sides[end]);
        let result = self.read_frames(end, link, &mut side);
        self.cables[which].sides[end] = side;
        result.map_err(|error| format!("end {end} saw a broken protocol: {error}"))
    }

    fn read_frames(&mut self, end: usize, link: LinkId, side: &mut Side) -> Result<(), ProtocolError> {
        loop {
            if let Some(header) = &mut side.data {
                let len = side.buffer.len().min(header.len as usize);
                let data = side.buffer.split_to(len);
                let direct = self.ends[end].mux.handle_data(link, header.flow, header.offset, &data, self.now)?;
                if let Some(skip) = direct {
                    self.lend(end, header.flow, data.freeze().slice(skip..));
                }
                header.len -= len as u32;
                header.offset += len as u64;
                if header.len > 0 {
                    return Ok(());
                }
                side.data = None;
            }
            let Some(header) = side.buffer.first_chunk::<HEADER_LEN>() else { return Ok(()) };
            let header = Header::decode(header)?;
            if header.kind == Kind::Data {
                side.buffer.advance(HEADER_LEN);
                side.data = Some(header);
                continue;
            }
            if side.buffer.len() < HEADER_LEN + header.len as usize {
                return Ok(());
            }
            let frame = side.buffer.split_to(HEADER_LEN + header.len as usize);
            self.ends[end].mux.handle_frame(link, header, &frame[HEADER_LEN..], self.now)?;
        }
    }

    // ---- programs

    fn program(&mut self, id: FlowId) -> Program {
        let length = self.random.below(self.scenario.length + 1);
        let resets = self.random.below(5) == 0;
        Program {
            is_control: id == FlowId::CONTROL,
            length,
            written: 0,
            finished: false,
            resets_at: (resets && id != FlowId::CONTROL).then(|| self.random.below(length + 1)),
            read: 0,
            lent: None,
            stalled: id.0 > 0 && id.0 <= self.scenario.stalled,
            end_seen: false,
            outcome: None,
        }
    }

    fn open(&mut self, end: usize) {
        if self.opened < self.scenario.flows {
            self.opened += 1;
            let id = self.ends[end].mux.open(Bytes::from_static(b"somewhere"), self.now).expect("not closed");
            let program = self.program(id);
            self.ends[end].programs.insert(id, program);
        }
    }

    fn follow(&mut self, end: usize) {
        while let Some(event) = self.ends[end].mux.poll_event() {
            if let Event::Offered { flow, payload } = event {
                assert_eq!(payload, "somewhere");
                let mut program = self.program(flow);
                if self.random.below(8) == 0 {
                    self.ends[end].mux.refuse(flow, Reset::Refused);
                    program.outcome = Some(Outcome::Did(Reset::Refused));
                }
                let known = self.ends[end].programs.insert(flow, program);
                assert!(known.is_none(), "flow {flow} was offered twice");
            }
        }
    }

    /// The mux handed bytes out: they are written on now, or in part, or later.
    fn lend(&mut self, end: usize, id: FlowId, bytes: Bytes) {
        let program = self.ends[end].programs.get_mut(&id).filter(|program| program.outcome.is_none());
        match program {
            Some(program) => {
                assert!(program.lent.is_none(), "bytes of flow {id} were handed out twice at once");
                program.lent = Some(bytes);
            }
            None => self.ends[end].mux.delivered(id, 0, &bytes, self.now),
        }
    }

    /// Some program at this end does something.
    fn act(&mut self, end: usize) -> Result<(), String> {
        let End { mux, programs } = &mut self.ends[end];
        let which = self.random.below(programs.len() as u64) as usize;
        let Some((id, program)) = programs.iter_mut().nth(which) else { return Ok(()) };
        let id = *id;
        if program.outcome.is_some() {
            return Ok(());
        }
        match mux.phase(id) {
            Phase::Opening => return Ok(()),
            Phase::Offered => {
                mux.accept(id);
                return Ok(());
            }
            Phase::Open => {}
            Phase::Ended(why) => {
                program.outcome = Some(Outcome::Was(why));
                mux.release(id);
                return Ok(());
            }
        }
        if program.resets_at.is_some_and(|at| program.written >= at) {
            mux.reset(id, Reset::TimedOut);
            mux.release(id);
            program.outcome = Some(Outcome::Did(Reset::TimedOut));
            return Ok(());
        }
        program.write(id, end, mux, self.random.below(3000), self.now);
        program.read(id, end, mux, &mut self.random, self.now)?;
        if program.finished && program.end_seen {
            program.outcome = Some(Outcome::Finished);
            mux.release(id);
        }
        Ok(())
    }

    fn pass_time(&mut self) {
        let most = if self.is_quiet() { 3_000_000 } else { 2_000 };
        self.now += Duration::from_micros(self.random.below(most));
        for end in &mut self.ends {
            end.mux.handle_timeout(self.now);
        }
        // Once the others are through, the stalled ones go on.
        let waiting = |program: &Program| !program.stalled && !program.is_through();
        let all_opened = self.opened == self.scenario.flows;
        if all_opened
            && self.ends.iter().all(|end| {
                !end.programs.iter().any(|(id, program)| {
                    // A flow stalled at the other end cannot get on either.
                    id.0 > self.scenario.stalled && waiting(program)
                })
            })
        {
            for program in self.ends.iter_mut().flat_map(|end| end.programs.values_mut()) {
                program.stalled = false;
            }
        }
    }

    // ---- the end

    fn is_quiet(&self) -> bool {
        self.cables.iter().all(|cable| cable.sides.iter().all(|side| side.under_way.is_empty()))
    }

    fn is_over(&self) -> bool {
        self.opened == self.scenario.flows
            && self.ends.iter().all(|end| {
                end.programs.values().all(Program::is_through)
                    && end.mux.flow_count() == 0
                    && end.mux.bytes_kept() == (0, 0)
                    && end.mux.farewells_kept() == 0
            })
    }

    fn check_end(&self) -> Result<(), String> {
        let [one, other] = &self.ends;
        for (id, program) in &one.programs {
            // An OPEN that was taken back before it arrived is known to one end alone.
            let Some(counterpart) = other.programs.get(id) else { continue };
            if !agree(program, counterpart) || !agree(counterpart, program) {
                return Err(format!("flow {id}: {:?} here, {:?} there", program.outcome, counterpart.outcome));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = format!("{} cables, now {:?}", self.cables.len(), self.now);
        for (number, end) in self.ends.iter().enumerate() {
            let kept = (end.mux.flow_count(), end.mux.bytes_kept(), end.mux.farewells_kept());
            text += &format!("; end {number}: flows, bytes, farewells kept {kept:?}");
            for (id, program) in end.programs.iter().filter(|(_, program)| !program.is_through()) {
                let Program { written, length, finished, read, end_seen, stalled, .. } = program;
                let phase = end.mux.phase(*id);
                text += &format!(
                    ", flow {id} {phase:?} written {written}/{length} finished {finished} read {read} end {end_seen} \
                     stalled {stalled}"
                );
            }
        }
        text
    }
}

/// Whether what this end saw is right, given what the other saw.
fn agree(here: &Program, there: &Program) -> bool {
    match here.outcome {
        Some(Outcome::Was(why)) => there.outcome == Some(Outcome::Did(why)),
        Some(Outcome::Finished) => {
            // The other may have reset what was finished here.
            let did = matches!(there.outcome, Some(Outcome::Did(_)));
            here.read <= there.length && (did || (here.read == there.length && there.read == here.length))
        }
        // The control flow never ends.
        None => here.read == there.length,
        Some(Outcome::Did(_)) => true,
    }
}

impl Program {
    /// The control flow has neither an end nor an outcome.
    fn is_through(&self) -> bool {
        self.outcome.is_some() || (self.is_control && self.finished)
    }

    fn write(&mut self, id: FlowId, end: usize, mux: &mut Mux, most: u64, now: Duration) {
        let len = (mux.room(id) as u64).min(self.length - self.written).min(most);
        if len > 0 {
            let bytes: Vec<u8> = (self.written..self.written + len).map(|at| byte(id, end, at)).collect();
            mux.write(id, Bytes::from(bytes), now);
            self.written += len;
        }
        if self.written == self.length && !self.finished {
            self.finished = true;
            if id != FlowId::CONTROL {
                mux.finish(id);
            }
        }
    }

    fn read(
        &mut self,
        id: FlowId,
        end: usize,
        mux: &mut Mux,
        random: &mut Random,
        now: Duration,
    ) -> Result<(), String> {
        if self.lent.is_none() {
            self.lent = mux.take(id);
        }
        if let Some(bytes) = self.lent.take() {
            let most = if self.stalled { 0 } else { random.below(bytes.len() as u64 + 1) as usize };
            for (at, got) in (self.read..).zip(&bytes[..most]) {
                if *got != byte(id, 1 - end, at) {
                    return Err(format!("flow {id}: wrong byte at {at}"));
                }
            }
            self.read += most as u64;
            mux.delivered(id, most, &bytes[most..], now);
        }
        if mux.at_end(id) && !self.end_seen {
            self.end_seen = true;
            mux.end_taken(id, now);
        }
        Ok(())
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.below(2);
        }
        random
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        value % limit.max(1)
    }
}
