//! The thread that owns the scheduler, and so the device. Requests and cancellations come to it
//! through a channel; what becomes of each request goes back through the channel that came with it.
//!
//! Between two steps the thread takes whatever has come, so that a client that leaves has its pages
//! freed before the next step. What came of a step is told while the device computes the next one,
//! which does not wait for clients to be woken.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use smq_convert::cli::tell;
use smq_engine::generate::Stop;
use smq_engine::serve::{BatchEngine, Counters, Event, LogProbs, Request, RequestId, Scheduler};
use tokio::sync::mpsc::UnboundedSender;

use super::metrics::{Finish, Metrics};

/// Which client's request something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// What became of a sequence.
#[derive(Debug)]
pub(super) enum Update {
    /// Log-probabilities of further tokens of the prompt.
    Prompt(Vec<LogProbs>),
    /// A new token of the answer, with its log-probabilities where they are wanted.
    Token(u32, Option<LogProbs>),
    /// The last word: the text is complete. How many of the prompt's tokens the cache had.
    Finished { stop: Stop, cached_tokens: usize },
    /// The last word: the request cannot be taken.
    Refused(String),
    /// The last word: the engine failed.
    Failed(String),
}

/// Updates of a ticket's sequences, by their place in it.
pub(super) type Updates = UnboundedSender<(usize, Update)>;

enum Command {
    Submit {
        ticket: Ticket,
        requests: Vec<Request>,
        arrived: Instant,
        updates: Updates,
    },
    /// All of a ticket's sequences, or one.
    Cancel(Ticket, Option<usize>),
}

/// The thread as others see it.
pub(super) struct Worker {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    tickets: AtomicU64,
}

#[derive(Default)]
struct Shared {
    /// Sequences that have been submitted and of which nothing has come yet.
    waiting: AtomicUsize,
    /// The thread has ended though nobody asked it to.
    dead: AtomicBool,
}

impl Worker {
    /// Starts the thread, which ends once the worker is dropped and its requests are answered.
    pub(super) fn start<E: BatchEngine + 'static>(
        scheduler: Scheduler<E>,
        metrics: Arc<Metrics>,
        check_pages: bool,
    ) -> std::io::Result<Self> {
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let thread = Thread {
            scheduler,
            routes: Routes {
                metrics,
                shared: shared.clone(),
                by_id: HashMap::new(),
            },
            check_pages,
        };
        std::thread::Builder::new()
            .name("scheduler".to_owned())
            .spawn(move || thread.run(&receiver))?;
        Ok(Self {
            commands,
            shared,
            tickets: AtomicU64::new(0),
        })
    }

    /// Sequences that wait for their first token.
    pub(super) fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Relaxed)
    }

    /// Submits sequences that belong together. They end when their updates' receiver is dropped,
    /// and at once when the ticket is [cancelled](Self::cancel).
    pub(super) fn submit(
        &self,
        requests: Vec<Request>,
        arrived: Instant,
        updates: Updates,
    ) -> Ticket {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let sequences = requests.len();
        self.shared.waiting.fetch_add(sequences, Ordering::Relaxed);
        let command = Command::Submit {
            ticket,
            requests,
            arrived,
            updates,
        };
        if self.commands.send(command).is_err() {
            // The updates' sender is dropped, which says that nothing will come.
            self.shared.waiting.fetch_sub(sequences, Ordering::Relaxed);
        }
        ticket
    }

    /// Ends what is left of a ticket.
    pub(super) fn cancel(&self, ticket: Ticket) {
        // Where the thread has ended, nothing is left.
        let _ = self.commands.send(Command::Cancel(ticket, None));
    }

    /// Ends one of a ticket's sequences, whose text is complete.
    pub(super) fn cancel_one(&self, ticket: Ticket, index: usize) {
        let _ = self.commands.send(Command::Cancel(ticket, Some(index)));
    }
}

/// Where the events of a sequence go.
struct Route {
    ticket: Ticket,
    index: usize,
    updates: Updates,
    arrived: Instant,
    /// When its last token came.
    last: Option<Instant>,
    /// Whether it counts as waiting.
    waits: bool,
    prompt_tokens: usize,
    generated_tokens: usize,
}

/// Where all events go.
struct Routes {
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    by_id: HashMap<RequestId, Route>,
}

struct Thread<E> {
    scheduler: Scheduler<E>,
    routes: Routes,
    /// Every page is looked at after every step, for tests: the thread ends at the first one that
    /// is not where it belongs.
    check_pages: bool,
}

/// Says that the thread has ended, however it did.
struct Dying(Arc<Shared>);

impl Drop for Dying {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::Relaxed);
    }
}

impl Routes {
    /// A sequence that was waiting does no longer.
    fn begun(&self, route: &Route) {
        if route.waits {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Tells events that came at `now`, and leaves none; `left` are sequences that nobody wants any
    /// more.
    fn tell(&mut self, events: &mut Vec<Event>, now: Instant, left: &mut Vec<RequestId>) {
        for event in events.drain(..) {
            left.extend(self.deliver(event, now));
        }
    }

    /// Tells an event; the sequence where nobody wants more of it.
    fn deliver(&mut self, event: Event, now: Instant) -> Option<RequestId> {
        let id = event.id();
        // A sequence that was cancelled has no route.
        let route = self.by_id.get_mut(&id)?;
        if std::mem::take(&mut route.waits) {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let is_last = event.is_last();
        let update = match event {
            Event::Prompt { id: _, log_probs } => Update::Prompt(log_probs),
            Event::Token {
                id: _,
                token,
                log_probs,
            } => {
                match route.last.replace(now) {
                    None => self.metrics.first_token(now - route.arrived),
                    Some(before) => self.metrics.next_token(now - before),
                }
                route.generated_tokens += 1;
                Update::Token(token, log_probs)
            }
            Event::Finished {
                id: _,
                stop,
                ended_by: _,
                cached_tokens,
            } => {
                let finish = match stop {
                    Stop::EndOfSequence | Stop::StopString => Finish::Stop,
                    Stop::MaxNewTokens | Stop::ContextFull => Finish::Length,
                };
                self.metrics.finished(finish);
                let (prompt, generated) = (route.prompt_tokens, route.generated_tokens);
                self.metrics
                    .answered(now - route.arrived, prompt, generated);
                Update::Finished {
                    stop,
                    cached_tokens,
                }
            }
            Event::Failed { id: _, error } => {
                self.metrics.finished(Finish::Error);
                Update::Failed(error.to_string())
            }
        };
        let is_gone = route.updates.send((route.index, update)).is_err();
        if is_last {
            self.by_id.remove(&id);
        }
        (is_gone && !is_last).then_some(id)
    }
}

impl<E: BatchEngine> Thread<E> {
    fn run(mut self, commands: &Receiver<Command>) {
        let _dying = Dying(self.routes.shared.clone());
        // What came of the last step, and when. It is told while the next one is computed.
        let mut untold = Vec::new();
        let mut now = Instant::now();
        // When the last step was done with, or work came.
        let mut between = Instant::now();
        loop {
            if self.routes.by_id.is_empty() {
                self.publish();
                if !self.pages_are_right() {
                    return;
                }
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
                between = Instant::now();
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    // What is in work is still answered.
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            if self.routes.by_id.is_empty() {
                continue;
            }
            let computing = computing(&self.scheduler.counters());
            let Self {
                scheduler, routes, ..
            } = &mut self;
            let mut left = Vec::new();
            let meanwhile = || routes.tell(&mut untold, now, &mut left);
            let stepped = catch_unwind(AssertUnwindSafe(|| scheduler.step_while(meanwhile)));
            now = Instant::now();
            match stepped {
                Ok(events) => untold = events,
                Err(panic) => {
                    // What came before is told first.
                    self.routes.tell(&mut untold, now, &mut left);
                    self.recover(&panic_message(&*panic));
                }
            }
            // Whoever is told of a token finds it counted.
            self.publish();
            // Where nothing is computed next, nothing is to be waited for.
            let last = untold.iter().filter(|event| event.is_last()).count();
            if last == self.routes.by_id.len() {
                self.routes.tell(&mut untold, now, &mut left);
            }
            for id in left {
                self.end(id, Finish::Abort);
            }
            if !self.pages_are_right() {
                return;
            }
            let all = between.elapsed();
            between += all;
            let computed = self::computing(&self.scheduler.counters()).saturating_sub(computing);
            let host = all.saturating_sub(computed);
            self.routes.metrics.host(host);
        }
    }

    /// Whether no page is lost or in two sequences, where that is to be checked.
    fn pages_are_right(&self) -> bool {
        if !self.check_pages {
            return true;
        }
        match self.scheduler.check() {
            Ok(()) => {
                self.routes.metrics.page_check();
                true
            }
            Err(fault) => {
                tell(&format!("the pages are wrong after a step: {fault}"));
                false
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit {
                ticket,
                requests,
                arrived,
                updates,
            } => {
                for (index, request) in requests.into_iter().enumerate() {
                    let prompt_tokens = request.prompt.len();
                    match self.scheduler.submit(request) {
                        Ok(id) => {
                            let route = Route {
                                ticket,
                                index,
                                updates: updates.clone(),
                                arrived,
                                last: None,
                                waits: true,
                                prompt_tokens,
                                generated_tokens: 0,
                            };
                            self.routes.by_id.insert(id, route);
                        }
                        Err(error) => {
                            self.routes.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                            self.routes.metrics.finished(Finish::Error);
                            let _ = updates.send((index, Update::Refused(error.to_string())));
                        }
                    }
                }
            }
            Command::Cancel(ticket, index) => {
                let is_meant = |route: &Route| {
                    route.ticket == ticket && index.is_none_or(|index| route.index == index)
                };
                let ids = self
                    .routes
                    .by_id
                    .iter()
                    .filter(|(_, route)| is_meant(route));
                let ids: Vec<RequestId> = ids.map(|(id, _)| *id).collect();
                // One whose text is complete has not been left by its client.
                let finish = index.map_or(Finish::Abort, |_| Finish::Stop);
                for id in ids {
                    self.end(id, finish);
                }
            }
        }
    }

    /// Ends a sequence of which nobody wants more.
    fn end(&mut self, id: RequestId, finish: Finish) {
        if let Some(route) = self.routes.by_id.remove(&id) {
            self.routes.begun(&route);
            self.routes.metrics.finished(finish);
            if matches!(finish, Finish::Stop) {
                let (prompt, generated) = (route.prompt_tokens, route.generated_tokens);
                self.routes
                    .metrics
                    .answered(route.arrived.elapsed(), prompt, generated);
            }
            self.scheduler.cancel(id);
        }
    }

    /// After a panic within a step nothing can be said of the sequences in it: all fail, and the
    /// next ones begin anew.
    fn recover(&mut self, message: &str) {
        for (id, route) in std::mem::take(&mut self.routes.by_id) {
            self.routes.begun(&route);
            self.routes.metrics.finished(Finish::Error);
            let failed = Update::Failed(format!("the engine panicked: {message}"));
            let _ = route.updates.send((route.index, failed));
            self.scheduler.cancel(id);
        }
    }

    fn publish(&self) {
        self.routes.metrics.scheduler(&self.scheduler.counters());
    }
}

/// Time that the device computed, guesses included.
fn computing(counters: &Counters) -> Duration {
    Duration::from_nanos(counters.engine_nanos + counters.draft_nanos)
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".to_owned())
}
