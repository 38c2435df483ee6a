//! The simulated world: programs above the muxes, cables below, and the checks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use link::frame::{FlowId, HEADER_LEN, Header, Kind};
use link::mux::{Bug, Config, Event, LinkId, Mux, Phase, Role};
use link::{ProtocolError, Reset};

use crate::program::{Outcome, Program, Random, agree};

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
    /// How often hours pass, for both ends or for one alone (the other's machine slept).
    pub(crate) jumps: u32,
    /// How often an end begins anew, without any memory.
    pub(crate) restarts: u32,
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
            jumps: random.below(4) as u32,
            restarts: random.below(4).saturating_sub(1) as u32,
        }
    }
}

pub(crate) struct World {
    random: Random,
    scenario: Scenario,
    now: Duration,
    /// By how much each end's clock is behind: it stands still while its machine sleeps.
    slept: [Duration; 2],
    ends: [End; 2],
    cables: Vec<Cable>,
    next_cable: u32,
    opened: u32,
    cuts: u32,
    jumps: u32,
    restarts: u32,
    /// Programs of ends that began anew, until the other end does, too.
    dead: Option<BTreeMap<FlowId, Program>>,
    bug: Option<Bug>,
}

/// One end of the session: the mux and the programs above it.
struct End {
    mux: Mux,
    programs: BTreeMap<FlowId, Program>,
    /// Which of the sessions between empty muxes this is. Links of two different ones are refused.
    generation: u32,
}

/// A link: two byte streams that keep order and may lose their tails when cut.
struct Cable {
    number: u32,
    /// Of the ends when it was dialled.
    generation: u32,
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

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, bug: Option<Bug>) -> Self {
        let random = Random::new(seed);
        let mut world = World {
            random,
            scenario,
            now: Duration::ZERO,
            slept: [Duration::ZERO; 2],
            ends: [Role::Client, Role::Agent].map(|role| End::new(role, 0, bug)),
            cables: Vec::new(),
            next_cable: 0,
            opened: 0,
            cuts: 0,
            jumps: 0,
            restarts: 0,
            dead: None,
            bug,
        };
        (0..2).for_each(|end| world.start_control(end));
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
            5..7 => self.cut_one(),
            7 => self.jump(),
            8 => self.restart(end)?,
            9..14 => self.open(end),
            14..37 => self.transmit(end)?,
            37..71 => self.receive(end)?,
            71..97 => self.act(end)?,
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
        let generation = self.ends[0].generation.max(self.ends[1].generation);
        self.cables.push(Cable { number, generation, cut: false, sides: Default::default() });
    }

    fn cut_one(&mut self) {
        if self.cuts >= self.scenario.cuts || self.cables.is_empty() || self.random.below(10) > 0 {
            return;
        }
        let which = self.random.below(self.cables.len() as u64) as usize;
        if !self.cables[which].cut {
            self.cuts += 1;
            self.cut(which);
        }
    }

    /// Loses a part of what is under way.
    fn cut(&mut self, which: usize) {
        let cable = &mut self.cables[which];
        cable.cut = true;
        for side in &mut cable.sides {
            let kept = self.random.below(side.under_way.len() as u64 + 1) as usize;
            side.under_way.truncate(kept);
            if let Some((_, last)) = side.under_way.back_mut() {
                last.truncate(self.random.below(last.len() as u64 + 1) as usize);
            }
        }
    }

    /// This end lets the link go, as when nothing came for too long; the other end finds out.
    fn let_go(&mut self, end: usize, link: LinkId) {
        let held = |cable: &Cable| cable.sides[end].link == Some(link) && !cable.sides[end].gone;
        if let Some(which) = self.cables.iter().position(held) {
            self.cut(which);
            self.cables[which].sides[end].gone = true;
            self.ends[end].mux.link_lost(link);
        }
    }

    /// Brings up or gives up this end of some cable, or puts frames on it.
    fn transmit(&mut self, end: usize) -> Result<(), String> {
        if self.cables.is_empty() {
            return Ok(());
        }
        let now = self.time(end);
        let which = self.random.below(self.cables.len() as u64) as usize;
        let side = &self.cables[which].sides[end];
        if side.link.is_none() && !side.gone && !self.greet(which)? {
            return Ok(());
        }
        let cable = &mut self.cables[which];
        let mux = &mut self.ends[end].mux;
        let side = &mut cable.sides[end];
        if side.gone {
            return Ok(());
        }
        let Some(link) = side.link else {
            side.link = mux.link_up(cable.number, now);
            side.gone = side.link.is_none() && cable.cut;
            return Ok(());
        };
        if cable.cut {
            if self.random.below(4) == 0 {
                mux.link_lost(link);
                side.gone = true;
            } else {
                // Written into nothing.
                mux.poll_transmit(link, &mut Vec::new(), 1 << 16, 8, now);
            }
            self.cables.retain(|cable| !cable.sides.iter().all(|side| side.gone));
            return Ok(());
        }
        let mut frames = Vec::new();
        let budget = 1 << self.random.below(17);
        mux.poll_transmit(link, &mut frames, budget, 1 + self.random.below(8) as usize, now);
        if frames.is_empty() {
            return Ok(());
        }
        let to = &mut cable.sides[1 - end];
        let longest = 1 << self.random.below(15);
        let delay = Duration::from_micros(self.random.below(longest));
        let at = to.under_way.back().map_or(self.now, |(at, _)| *at).max(self.now + delay);
        let bytes = frames.iter().flat_map(|frame| frame.header.iter().chain(&frame.payload[..])).copied().collect();
        to.under_way.push_back((at, bytes));
        Ok(())
    }

    /// What HELLO is for: whether both ends are of one session. An end that learns that the other began anew begins anew.
    fn greet(&mut self, which: usize) -> Result<bool, String> {
        let generations = [0, 1].map(|end| self.ends[end].generation);
        let newest = generations.into_iter().max().unwrap_or_default();
        if let Some(behind) = generations.iter().position(|generation| *generation < newest) {
            self.begin_anew(behind, newest)?;
        }
        let cable = &mut self.cables[which];
        let is_of_both = cable.generation == newest;
        if !is_of_both {
            cable.cut = true;
            cable.sides.iter_mut().filter(|side| side.link.is_none()).for_each(|side| side.gone = true);
            self.cables.retain(|cable| !cable.sides.iter().all(|side| side.gone));
        }
        Ok(is_of_both)
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
                let now = self.time(end);
                let direct = self.ends[end].mux.handle_data(link, header.flow, header.offset, &data, now)?;
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
            let now = self.time(end);
            self.ends[end].mux.handle_frame(link, header, &frame[HEADER_LEN..], now)?;
        }
    }

    // ---- beginning anew

    /// The end's process dies and another takes its place.
    fn restart(&mut self, end: usize) -> Result<(), String> {
        let is_noticed = self.ends[0].generation == self.ends[1].generation;
        if self.restarts >= self.scenario.restarts || !is_noticed || self.random.below(30) > 0 {
            return Ok(());
        }
        self.restarts += 1;
        let generation = self.ends[end].generation + 1;
        self.ends[end].programs.values_mut().for_each(|program| program.died = true);
        self.dead = Some(self.replace(end, generation));
        Ok(())
    }

    /// The end resets what it had with a process that is gone, and is ready for the one that took its place.
    fn begin_anew(&mut self, end: usize, generation: u32) -> Result<(), String> {
        self.follow(end);
        let End { mux, programs, .. } = &mut self.ends[end];
        mux.close(Reset::Aborted);
        for (id, program) in programs.iter_mut().filter(|(_, program)| program.outcome.is_none()) {
            let Phase::Ended(why) = mux.phase(*id) else { return Err(format!("flow {id} outlives the session")) };
            program.outcome = Some(Outcome::Was(why));
            mux.release(*id);
        }
        if (mux.flow_count(), mux.bytes_kept()) != (0, (0, 0)) {
            return Err(format!("a closed session keeps {} flows, {:?} bytes", mux.flow_count(), mux.bytes_kept()));
        }
        let ended = self.replace(end, generation);
        let dead = self.dead.take().unwrap_or_default();
        compare(&ended, &dead)
    }

    /// Puts an empty end in the place of one, whose links go with it.
    fn replace(&mut self, end: usize, generation: u32) -> BTreeMap<FlowId, Program> {
        for which in 0..self.cables.len() {
            let side = &mut self.cables[which].sides[end];
            if side.link.is_some() && !side.gone {
                side.gone = true;
                self.cut(which);
            }
        }
        let role = if end == 0 { Role::Client } else { Role::Agent };
        let before = std::mem::replace(&mut self.ends[end], End::new(role, generation, self.bug));
        self.start_control(end);
        before.programs
    }

    fn start_control(&mut self, end: usize) {
        let program = self.program(FlowId::CONTROL);
        self.ends[end].programs.insert(FlowId::CONTROL, program);
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
            died: false,
        }
    }

    fn open(&mut self, end: usize) {
        if self.opened < self.scenario.flows {
            self.opened += 1;
            let now = self.time(end);
            let id = self.ends[end].mux.open(Bytes::from_static(b"somewhere"), now).expect("not closed");
            let program = self.program(id);
            self.ends[end].programs.insert(id, program);
        }
    }

    fn follow(&mut self, end: usize) {
        while let Some(event) = self.ends[end].mux.poll_event() {
            if let Event::Silent(link) = event {
                self.let_go(end, link);
            }
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
        let now = self.time(end);
        let program = self.ends[end].programs.get_mut(&id).filter(|program| program.outcome.is_none());
        match program {
            Some(program) => {
                assert!(program.lent.is_none(), "bytes of flow {id} were handed out twice at once");
                program.lent = Some(bytes);
            }
            None => self.ends[end].mux.delivered(id, 0, &bytes, now),
        }
    }

    /// Some program at this end does something.
    fn act(&mut self, end: usize) -> Result<(), String> {
        let now = self.time(end);
        let End { mux, programs, .. } = &mut self.ends[end];
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
        program.write(id, end, mux, self.random.below(3000), now);
        program.read(id, end, mux, &mut self.random, now)?;
        if program.finished && program.end_seen {
            program.outcome = Some(Outcome::Finished);
            mux.release(id);
        }
        Ok(())
    }

    // ---- time

    /// What this end's clock shows.
    fn time(&self, end: usize) -> Duration {
        self.now - self.slept[end]
    }

    fn tell_time(&mut self) {
        for end in 0..2 {
            let now = self.time(end);
            self.ends[end].mux.handle_timeout(now);
        }
    }

    /// Hours pass; one of the machines may have slept.
    fn jump(&mut self) {
        if self.jumps >= self.scenario.jumps || self.random.below(20) > 0 {
            return;
        }
        self.jumps += 1;
        let hours = Duration::from_secs(3600 * (1 + self.random.below(100)));
        self.now += hours;
        if let Some(slept) = self.slept.get_mut(self.random.below(3) as usize) {
            *slept += hours;
        }
        self.tell_time();
        (0..2).for_each(|end| self.follow(end));
    }

    fn pass_time(&mut self) {
        let most = if self.is_quiet() { 3_000_000 } else { 2_000 };
        self.now += Duration::from_micros(self.random.below(most));
        self.tell_time();
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
        match one.generation == other.generation {
            true => compare(&one.programs, &other.programs),
            // Nothing was open when one of them began anew.
            false => Ok(()),
        }
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

impl End {
    fn new(role: Role, generation: u32, bug: Option<Bug>) -> Self {
        let config = Config { window: 4096, max_window: 64 << 10, growth_budget: 128 << 10, ..Config::default() };
        let mut mux = Mux::new(role, config);
        mux.bug = bug;
        End { mux, programs: BTreeMap::new(), generation }
    }
}

fn compare(one: &BTreeMap<FlowId, Program>, other: &BTreeMap<FlowId, Program>) -> Result<(), String> {
    for (id, program) in one {
        // An OPEN that was taken back before it arrived is known to one end alone.
        let Some(counterpart) = other.get(id) else { continue };
        if !agree(program, counterpart) || !agree(counterpart, program) {
            return Err(format!("flow {id}: {:?} here, {:?} there", program.outcome, counterpart.outcome));
        }
    }
    Ok(())
}
