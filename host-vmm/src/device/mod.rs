//! The legacy PC's devices: registers on ports, an exit for each access.
//!
//! PIC, IOAPIC, LAPIC and PIT are KVM's own; what is here is what KVM leaves to the VMM. A port that
//! nobody claims reads as all ones and swallows writes, as on a bus without a device.

pub mod i8042;
pub mod ide;
pub mod mark;
pub mod ne2000;
pub mod pci;
pub mod rtc;
pub mod uart;

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use self::i8042::I8042;
use self::ide::Ide;
use self::ne2000::Ne2000;
use self::pci::Pci;
use self::rtc::Rtc;
use self::uart::Uart;
use crate::snapshot::{PartError, Saved, State, from_state, to_state};
use crate::sync::lock;

/// What a port access asks of the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortAction {
    /// Nothing more.
    Done,
    /// The guest pulled the reset line.
    Reset,
    /// The guest passed a milestone of its boot (see [`mark`]).
    Mark(u8),
    /// Nobody is there.
    Unclaimed,
}

/// The devices of one guest. A para guest has only the mark port, and a UART where it has no console
/// facility.
#[derive(Debug, Default)]
pub struct Ports {
    uart: Option<Mutex<Uart>>,
    rtc: Option<Mutex<Rtc>>,
    keyboard: Option<Mutex<I8042>>,
    cards: Option<Cards>,
}

/// What a legacy PC has only where somebody asked for it: without a card, there is no bus for it either, and a kernel
/// that looks for one finds nothing at once.
#[derive(Debug)]
struct Cards {
    pci: Pci,
    ide: Option<Ide>,
    network: Option<Ne2000>,
}

impl Cards {
    fn write(&self, port: u16, data: &[u8]) -> bool {
        let pci = &self.pci;
        pci.write(port, data)
            || self
                .ide
                .as_ref()
                .is_some_and(|ide| ide.write(pci, port, data))
            || self
                .network
                .as_ref()
                .is_some_and(|card| card.write(pci, port, data))
    }

    fn read(&self, port: u16, data: &mut [u8]) -> bool {
        let pci = &self.pci;
        pci.read(port, data)
            || self
                .ide
                .as_ref()
                .is_some_and(|ide| ide.read(pci, port, data))
            || self
                .network
                .as_ref()
                .is_some_and(|card| card.read(pci, port, data))
    }
}

/// What a snapshot has of the port devices: those that there are.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedPorts {
    uart: Option<State>,
    rtc: Option<State>,
    keyboard: Option<I8042>,
    cards: Option<State>,
}

impl Saved for Cards {
    fn save(&self) -> Result<State, PartError> {
        let ide = self.ide.as_ref().map(Saved::save).transpose()?;
        let network = self.network.as_ref().map(Saved::save).transpose()?;
        to_state(&(self.pci.save()?, ide, network))
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let (pci, ide, network): (State, Option<State>, Option<State>) = from_state(state)?;
        self.pci.restore(pci)?;
        restore_part("IDE controller", self.ide.as_ref(), ide, Ide::restore)?;
        let card = self.network.as_ref();
        restore_part("NE2000", card, network, Ne2000::restore)
    }

    fn go_on(&self) {
        self.ide.iter().for_each(Saved::go_on);
        self.network.iter().for_each(Saved::go_on);
    }
}

/// What there is has its state, and what is not there has none.
fn restore_part<P, S>(
    name: &str,
    part: Option<&P>,
    state: Option<S>,
    restore: impl FnOnce(&P, S) -> Result<(), PartError>,
) -> Result<(), PartError> {
    match (part, state) {
        (None, None) => Ok(()),
        (Some(part), Some(state)) => restore(part, state),
        (None, Some(_)) => Err(PartError(format!("there is no {name} here"))),
        (Some(_), None) => Err(PartError(format!("its {name} is missing"))),
    }
}

impl Saved for Ports {
    fn save(&self) -> Result<State, PartError> {
        let rtc = self.rtc.as_ref().map(|rtc| lock(rtc).save());
        to_state(&SavedPorts {
            uart: self.with_uart(|uart| uart.save()).transpose()?,
            rtc: rtc.transpose()?,
            keyboard: self
                .keyboard
                .as_ref()
                .map(|keyboard| lock(keyboard).clone()),
            cards: self.cards.as_ref().map(Saved::save).transpose()?,
        })
    }

    fn restore(&self, state: State) -> Result<(), PartError> {
        let saved: SavedPorts = from_state(state)?;
        restore_part("UART", self.uart.as_ref(), saved.uart, |uart, saved| {
            lock(uart).restore(saved)
        })?;
        restore_part("clock", self.rtc.as_ref(), saved.rtc, |rtc, saved| {
            lock(rtc).restore(saved)
        })?;
        let keyboard = self.keyboard.as_ref();
        restore_part("keyboard", keyboard, saved.keyboard, |keyboard, saved| {
            *lock(keyboard) = saved;
            Ok(())
        })?;
        restore_part("PCI bus", self.cards.as_ref(), saved.cards, Cards::restore)
    }

    fn go_on(&self) {
        self.cards.iter().for_each(Saved::go_on);
    }
}

impl Ports {
    /// A legacy PC around `uart`.
    #[must_use]
    pub fn legacy(uart: Uart) -> Self {
        Self {
            uart: Some(Mutex::new(uart)),
            rtc: Some(Mutex::default()),
            keyboard: Some(Mutex::default()),
            cards: None,
        }
    }

    /// The same with a PCI bus and what is on it.
    #[must_use]
    pub fn with_cards(mut self, ide: Option<Ide>, network: Option<Ne2000>) -> Self {
        let functions = ide.iter().flat_map(Ide::functions);
        let functions = functions.chain(network.iter().map(Ne2000::function));
        let pci = Pci::new(functions.collect());
        self.cards = Some(Cards { pci, ide, network });
        self
    }

    /// The network card, whose frames come from the host.
    #[must_use]
    pub fn network(&self) -> Option<&Ne2000> {
        self.cards.as_ref()?.network.as_ref()
    }

    /// A UART and nothing else.
    #[must_use]
    pub fn uart_only(uart: Uart) -> Self {
        Self {
            uart: Some(Mutex::new(uart)),
            ..Self::default()
        }
    }

    /// The UART, for input from the terminal.
    pub fn with_uart<R>(&self, f: impl FnOnce(&mut Uart) -> R) -> Option<R> {
        self.uart.as_ref().map(|uart| f(&mut lock(uart)))
    }

    /// The guest wrote `data` to `port`.
    pub fn write(&self, port: u16, data: &[u8]) -> PortAction {
        if self
            .cards
            .as_ref()
            .is_some_and(|cards| cards.write(port, data))
        {
            return PortAction::Done;
        }
        let [value] = *data else {
            return if port == mark::PORT {
                PortAction::Done
            } else {
                PortAction::Unclaimed
            };
        };
        match port {
            mark::PORT => PortAction::Mark(value),
            uart::FIRST..=uart::LAST if self.uart.is_some() => {
                self.with_uart(|uart| uart.write(port, value));
                PortAction::Done
            }
            i8042::DATA | i8042::COMMAND => match &self.keyboard {
                Some(keyboard) if lock(keyboard).write(port, value) => PortAction::Reset,
                Some(_) => PortAction::Done,
                None => PortAction::Unclaimed,
            },
            rtc::INDEX | rtc::DATA => match &self.rtc {
                Some(rtc) => {
                    lock(rtc).write(port, value);
                    PortAction::Done
                }
                None => PortAction::Unclaimed,
            },
            _ => PortAction::Unclaimed,
        }
    }

    /// The guest reads `data.len()` bytes from `port`.
    pub fn read(&self, port: u16, data: &mut [u8]) -> PortAction {
        data.fill(0xff);
        if self
            .cards
            .as_ref()
            .is_some_and(|cards| cards.read(port, data))
        {
            return PortAction::Done;
        }
        let [value] = data else {
            return PortAction::Unclaimed;
        };
        match port {
            uart::FIRST..=uart::LAST => {
                let Some(byte) = self.with_uart(|uart| uart.read(port)) else {
                    return PortAction::Unclaimed;
                };
                *value = byte;
            }
            i8042::DATA | i8042::COMMAND => match &self.keyboard {
                Some(keyboard) => *value = lock(keyboard).read(port),
                None => return PortAction::Unclaimed,
            },
            rtc::INDEX | rtc::DATA => match &self.rtc {
                Some(rtc) => *value = lock(rtc).read(port),
                None => return PortAction::Unclaimed,
            },
            _ => return PortAction::Unclaimed,
        }
        PortAction::Done
    }
}
