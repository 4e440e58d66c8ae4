//! A device at work: its thread, its doorbells, its way to the driver.
//!
//! # How it works
//!
//! The transport collects what the driver says, and then calls [`Unit::start`]: a thread takes the device and the queues, and waits
//! for doorbells. [`Unit::stop`] waits until it has ended, so that guest memory is the driver's
//! alone once a reset has returned. A driver that breaks the rules ends the thread, too; then the device needs a reset.
//!
//! Where a device has a [`Server`], the thread lends it the queues, and takes them back for a reset or a pause.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::poll::{Poll, Poller};
use super::queue::{Io, QueueError, QueueSetup, SavedQueue, Virtqueue};
use super::{CONFIG_MAX, Device, Lent, QUEUES_MAX, Server};
use crate::confine;
use crate::memory::Memory;
use crate::pause::{Pause, Place};
use crate::snapshot::{self, PartError, Saved, from_state, to_state};
use crate::stats::bump;
use crate::sync::lock;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

/// Tokens of the thread's epoll, beside the queues' numbers.
const STOP: u64 = u64::MAX;
const BACKEND: u64 = u64::MAX - 1;

/// How a driver learns of something.
pub trait Interrupt: fmt::Debug + Send + Sync {
    /// What KVM turns into an interrupt when it is written to, for a [`Server`].
    fn line(&self) -> Option<&EventFd> {
        None
    }
    /// There are used requests.
    fn queue_used(&self);
    /// The device needs a reset.
    fn needs_reset(&self);
    /// The word at `at` of the configuration is another now.
    fn config_changed(&self, _at: usize, _word: u32) {}
}

/// What a device has done. Written by its thread, read by anybody.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    wakes: AtomicU64,
    looks: AtomicU64,
    interrupts: AtomicU64,
}

impl Counts {
    pub(super) fn request(&self) {
        bump(&self.requests);
    }
}

/// A device's part of the statistics.
#[derive(Clone, Debug, Serialize)]
pub struct UnitStats {
    /// What it is.
    pub device: &'static str,
    /// Requests carried out, or refused with a status.
    pub requests: u64,
    /// How often its thread was woken: by doorbells, or by the host.
    pub wakes: u64,
    /// How often it has looked at its queues by itself.
    pub looks: u64,
    /// Interrupts that it has raised.
    pub interrupts: u64,
    /// What the first driver that broke the rules has done.
    pub broken: Option<String>,
}

/// What a device's thread shares with the rest of the VMM.
#[derive(Debug)]
pub struct Link {
    interrupt: Box<dyn Interrupt>,
    stop: EventFd,
    stopping: AtomicBool,
    needs_reset: AtomicBool,
    pub(super) counts: Counts,
    broken: OnceLock<String>,
    pause: Arc<Pause>,
    place: Place,
    /// The queues when the thread last parked, or began.
    parked: Mutex<Vec<SavedQueue>>,
}

impl Link {
    /// Between two requests: parks where a pause is wanted, and leaves there how the queues stand. False: the thread is to end.
    pub(super) fn may_go_on(&self, queues: &[Virtqueue]) -> bool {
        if self.pause.is_wanted() {
            *lock(&self.parked) = queues.iter().map(Virtqueue::save).collect();
            self.begin();
        }
        !self.is_stopping()
    }

    /// Whether the thread shall park, or end.
    pub(super) fn is_wanted_back(&self) -> bool {
        self.pause.is_wanted() || self.is_stopping()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn begin(&self) {
        self.pause.begin_unless(self.place, || self.is_stopping());
    }

    pub(super) fn queue_used(&self) {
        bump(&self.counts.interrupts);
        self.interrupt.queue_used();
    }

    fn fails(&self, error: &QueueError) {
        let _ = self.broken.set(error.to_string());
        self.needs_reset.store(true, Ordering::SeqCst);
        self.interrupt.needs_reset();
    }
}

#[derive(Debug)]
enum State {
    Idle(Box<dyn Device>),
    /// Waits for its machine to go on, with what the driver has agreed to.
    Restored(Box<dyn Device>, u64, Vec<Virtqueue>),
    Works(JoinHandle<Box<dyn Device>>),
    /// Its thread has panicked, or could not be made.
    Lost,
}

/// A device, and what it needs to work.
#[derive(Debug)]
pub struct Unit {
    kind: u32,
    name: &'static str,
    features: u64,
    config: Mutex<[u8; CONFIG_MAX]>,
    /// How often it has changed.
    generation: AtomicU32,
    memory: Memory,
    doorbells: Arc<[EventFd]>,
    is_lent: bool,
    poll: Poll,
    link: Arc<Link>,
    /// What the driver has agreed to.
    agreed: AtomicU64,
    state: Mutex<State>,
}

/// What a snapshot has of a device at work.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedUnit {
    features: u64,
    queues: Vec<SavedQueue>,
}

impl Unit {
    /// Prepares `device` to work on `memory`, and to stand still for `pause`.
    ///
    /// # Errors
    ///
    /// No descriptor left.
    pub fn new(
        mut device: Box<dyn Device>,
        memory: Memory,
        interrupt: Box<dyn Interrupt>,
        pause: Arc<Pause>,
    ) -> io::Result<Self> {
        let queues = device.queues().min(QUEUES_MAX);
        let doorbells = (0..queues).map(|_| EventFd::new(libc::EFD_NONBLOCK));
        Ok(Self {
            kind: device.kind(),
            name: device.name(),
            features: device.common_features() | device.features(),
            config: Mutex::new(device.config()),
            generation: AtomicU32::new(0),
            memory,
            doorbells: doorbells.collect::<io::Result<_>>()?,
            is_lent: device.server().is_some(),
            poll: Poll::Off,
            link: Arc::new(Link {
                interrupt,
                stop: EventFd::new(libc::EFD_NONBLOCK)?,
                stopping: AtomicBool::new(false),
                needs_reset: AtomicBool::new(false),
                counts: Counts::default(),
                broken: OnceLock::new(),
                place: pause.add_worker(),
                pause,
                parked: Mutex::default(),
            }),
            agreed: AtomicU64::new(0),
            state: Mutex::new(State::Idle(device)),
        })
    }

    /// The same, looking at its queues by itself.
    #[must_use]
    pub fn polling(mut self, poll: Poll) -> Self {
        self.poll = poll;
        self
    }

    /// Its number in virtio's registry.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// What it offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> [u8; CONFIG_MAX] {
        *lock(&self.config)
    }

    /// Another number whenever the configuration is another.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Changes the word at `at` of its configuration, and tells the driver.
    pub fn configure(&self, at: usize, word: u32) {
        let mut config = lock(&self.config);
        if let Some(bytes) = config.get_mut(at..at + size_of::<u32>()) {
            bytes.copy_from_slice(&word.to_le_bytes());
            self.generation.fetch_add(1, Ordering::SeqCst);
            self.link.interrupt.config_changed(at, word);
        }
    }

    /// A doorbell for each queue, for KVM to ring.
    #[must_use]
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// Whether its queues are served by somebody else.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Whether it has stopped because the driver has broken the rules.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.link.needs_reset.load(Ordering::SeqCst)
    }

    /// Its statistics.
    #[must_use]
    pub fn stats(&self) -> UnitStats {
        let counts = &self.link.counts;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UnitStats {
            device: self.name,
            requests: get(&counts.requests),
            wakes: get(&counts.wakes),
            looks: get(&counts.looks),
            interrupts: get(&counts.interrupts),
            broken: self.link.broken.get().cloned(),
        }
    }

    /// Whether a driver can agree to these features.
    ///
    /// # Errors
    ///
    /// [`QueueError::Features`].
    pub fn check(&self, agreed: u64) -> Result<(), QueueError> {
        let offered = self.features;
        if agreed & !offered != 0 || agreed & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(QueueError::Features { agreed, offered });
        }
        Ok(())
    }

    /// Whether it has been started, and not stopped since.
    #[must_use]
    pub fn is_started(&self) -> bool {
        matches!(*lock(&self.state), State::Works(_))
    }

    /// Begins to work on the driver's queues.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: features or queues that cannot be, and nothing has happened.
    pub fn start(&self, features: u64, setups: &[QueueSetup]) -> Result<(), QueueError> {
        self.check(features)?;
        let needed = self.queues_needed(features).ok_or(QueueError::Busy)?;
        let queues = (0..self.doorbells.len())
            .map(|index| (index, setups.get(index).copied().unwrap_or_default()))
            .take_while(|(index, setup)| *index < needed || setup.ready)
            .map(|(index, setup)| Virtqueue::new(index, &setup, features, self.memory.mmap()));
        self.begin(features, queues.collect::<Result<_, _>>()?)
    }

    /// How many queues such a driver has to set up, where the device does not work yet.
    fn queues_needed(&self, features: u64) -> Option<usize> {
        match &*lock(&self.state) {
            State::Idle(device) => Some(device.queues_needed(features)),
            _ => None,
        }
    }

    fn begin(&self, features: u64, queues: Vec<Virtqueue>) -> Result<(), QueueError> {
        let mut state = lock(&self.state);
        let mut device = match std::mem::replace(&mut *state, State::Lost) {
            State::Idle(device) => device,
            other => {
                *state = other;
                return Err(QueueError::Busy);
            }
        };
        device.begin(features);
        self.agreed.store(features, Ordering::Relaxed);
        let saved = queues.iter().map(Virtqueue::save);
        let saved: Vec<_> = saved.collect();
        let setups: Vec<_> = saved.iter().map(|queue| queue.setup).collect();
        *lock(&self.link.parked) = saved;
        let own: &[EventFd] = if self.is_lent { &[] } else { &self.doorbells };
        let watched = watch(own, &self.link, &*device);
        let (memory, link) = (self.memory.clone(), Arc::clone(&self.link));
        let doorbells = Arc::clone(&self.doorbells);
        let poller = Poller::new(self.poll);
        let spawned = watched.and_then(|epoll| {
            std::thread::Builder::new()
                .name(self.name.to_owned())
                .spawn(move || {
                    let lent = link.interrupt.line().map(|interrupt| Lent {
                        memory: memory.mmap(),
                        features,
                        queues: &setups,
                        doorbells: &doorbells,
                        interrupt,
                    });
                    let io = Io::new(memory.mmap(), queues, &link, poller.looks());
                    work(device, (io, poller), lent, &link, &epoll)
                })
        });
        *state = State::Works(spawned.map_err(QueueError::Host)?);
        Ok(())
    }

    /// The driver has broken the rules: the device needs a reset, and says so.
    pub fn fails(&self, error: &QueueError) {
        self.link.fails(error);
    }

    /// Ends the device's work, and waits until guest memory is the driver's alone.
    pub fn stop(&self) {
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, State::Lost) {
            State::Works(thread) => {
                self.link.stopping.store(true, Ordering::SeqCst);
                // It is written once a stop, and cannot be full.
                let _ = self.link.stop.write(1);
                self.link.pause.wake();
                let ended = thread.join();
                let _ = self.link.stop.read();
                self.link.stopping.store(false, Ordering::SeqCst);
                ended.map_or(State::Lost, State::Idle)
            }
            other => other,
        };
        self.link.needs_reset.store(false, Ordering::SeqCst);
    }
}

impl Saved for Unit {
    fn save(&self) -> Result<snapshot::State, PartError> {
        match *lock(&self.state) {
            _ if self.needs_reset() => Err(PartError::because("waits for a reset by its driver")),
            State::Lost | State::Restored(..) => Err(PartError::because("has failed")),
            State::Idle(_) => Ok(snapshot::State::Null),
            State::Works(_) if self.is_lent => {
                Err(PartError::because("is not served by this process (--io)"))
            }
            State::Works(_) => to_state(&SavedUnit {
                features: self.agreed.load(Ordering::Relaxed),
                queues: lock(&self.link.parked).clone(),
            }),
        }
    }

    /// It goes on with the queues where they were. The driver may not have been told of the last requests that were done, so
    /// it is told again.
    fn restore(&self, state: snapshot::State) -> Result<(), PartError> {
        let Some(saved) = from_state::<Option<SavedUnit>>(state)? else {
            return Ok(());
        };
        let cannot = |e: QueueError| PartError(e.to_string());
        self.check(saved.features).map_err(cannot)?;
        let needed = self.queues_needed(saved.features).unwrap_or(usize::MAX);
        if !(needed..=self.doorbells.len()).contains(&saved.queues.len()) {
            return Err(PartError::because("it has another number of queues"));
        }
        let queues = saved.queues.into_iter();
        let queues = queues.map(|queue| Virtqueue::of(queue, self.memory.mmap()));
        let queues = queues.collect::<Result<_, _>>().map_err(cannot)?;
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, State::Lost) {
            State::Idle(device) => State::Restored(device, saved.features, queues),
            other => other,
        };
        Ok(())
    }

    fn go_on(&self) {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Lost) {
            State::Restored(device, features, queues) => {
                *state = State::Idle(device);
                drop(state);
                if let Err(error) = self.begin(features, queues) {
                    self.fails(&error);
                }
                self.link.interrupt.queue_used();
            }
            other => *state = other,
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An epoll with all that a device waits for. Edges, so that a doorbell need not be read.
fn watch(doorbells: &[EventFd], link: &Link, device: &dyn Device) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd, token, edge| {
        let event = EpollEvent::new(EventSet::IN | edge, token);
        epoll.ctl(ControlOperation::Add, fd, event)
    };
    for (token, doorbell) in (0..).zip(doorbells) {
        add(doorbell.as_raw_fd(), token, EventSet::EDGE_TRIGGERED)?;
    }
    add(link.stop.as_raw_fd(), STOP, EventSet::empty())?;
    if let Some(backend) = device.backend() {
        add(backend, BACKEND, EventSet::EDGE_TRIGGERED)?;
    }
    Ok(epoll)
}

/// The device's thread.
fn work(
    mut device: Box<dyn Device>,
    (mut io, mut poller): (Io<'_>, Poller),
    lent: Option<Lent<'_>>,
    link: &Link,
    epoll: &Epoll,
) -> Box<dyn Device> {
    confine::thread(confine::Thread::Worker);
    link.begin();
    let done = match device.server().zip(lent) {
        Some((server, lent)) => lend(server, &lent, link, epoll),
        None => serve(&mut *device, &mut io, &mut poller, link, epoll),
    };
    // Whatever has ended it, guest memory stands still from here on.
    let settled = device.settle(&mut io);
    if let Err(error) = done.and(settled) {
        link.fails(&error);
    }
    link.pause.rest(link.place);
    device
}

/// Lends the queues until they are wanted back: for good, or for a pause.
fn lend(
    server: &mut dyn Server,
    lent: &Lent<'_>,
    link: &Link,
    epoll: &Epoll,
) -> Result<(), QueueError> {
    while link.may_go_on(&[]) {
        server.begin(lent).map_err(QueueError::Server)?;
        let mut event = [EpollEvent::default()];
        // A signal asks for a look at the pause.
        let count = epoll.wait(-1, &mut event).unwrap_or(0);
        server.end(lent).map_err(QueueError::Server)?;
        if count > 0 && event[0].data() == BACKEND {
            return Err(QueueError::Refused);
        }
    }
    Ok(())
}

fn serve(
    device: &mut dyn Device,
    io: &mut Io<'_>,
    poller: &mut Poller,
    link: &Link,
    epoll: &Epoll,
) -> Result<(), QueueError> {
    loop {
        if io.is_wanted_back() {
            device.settle(io)?;
            if !io.may_go_on() {
                return Ok(());
            }
        }
        let again = io.take_again();
        for queue in (0..QUEUES_MAX).filter(|queue| again & 1 << queue != 0) {
            device.serve(queue, io)?;
        }
        if poller.goes_on(link.counts.requests.load(Ordering::Relaxed)) {
            bump(&link.counts.looks);
            io.look();
            // The guest may want this processor.
            std::thread::yield_now();
            continue;
        }
        if poller.looks() && io.rest()? {
            continue;
        }
        let mut events = [EpollEvent::default(); QUEUES_MAX + 2];
        let timeout = if io.has_more() { 0 } else { -1 };
        let since = Instant::now();
        // A signal asks for a look at the pause.
        let count = epoll.wait(timeout, &mut events).unwrap_or(0);
        if count > 0 {
            bump(&link.counts.wakes);
            poller.waited(since.elapsed());
        }
        for event in &events[..count] {
            match event.data() {
                STOP => {}
                BACKEND => device.serve_backend(io)?,
                queue => device.serve(usize::try_from(queue).unwrap_or(0), io)?,
            }
        }
    }
}
