//! A graph of BPF instructions and its order in memory.
//!
//! Branches reach at most 255 instructions ahead and never back, so the order is made from the end to the start, when
//! every target is already placed; farther targets get a copy (a return) or a long jump in between.

use std::collections::BTreeMap;

/// A comparison of the accumulator with a constant, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Test {
    /// `BPF_JEQ`
    Equal,
    /// `BPF_JGT`
    Greater,
    /// `BPF_JGE`
    GreaterOrEqual,
    /// `BPF_JSET`
    AnyBit,
}

impl Test {
    /// Whether it holds.
    pub fn holds(self, accumulator: u32, constant: u32) -> bool {
        match self {
            Self::Equal => accumulator == constant,
            Self::Greater => accumulator > constant,
            Self::GreaterOrEqual => accumulator >= constant,
            Self::AnyBit => accumulator & constant != 0,
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::Equal => libc::BPF_JEQ,
            Self::Greater => libc::BPF_JGT,
            Self::GreaterOrEqual => libc::BPF_JGE,
            Self::AnyBit => libc::BPF_JSET,
        }
    }
}

/// A node of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(usize);

/// An instruction with what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// Ends with this value.
    Return(u32),
    /// Loads the word at this offset of `seccomp_data`.
    Load(u32, NodeId),
    /// Keeps these bits of the accumulator.
    And(u32, NodeId),
    /// Goes to the first node if the test of the accumulator with the constant holds, else to the second.
    Branch(Test, u32, NodeId, NodeId),
}

/// Nodes, equal ones only once.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    known: BTreeMap<Node, NodeId>,
}

impl Graph {
    /// Adds a node, or finds its equal. A branch that leads to one place is that place.
    pub fn add(&mut self, node: Node) -> NodeId {
        if let Node::Branch(_, _, yes, no) = node
            && yes == no
        {
            return yes;
        }
        *self.known.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            NodeId(self.nodes.len() - 1)
        })
    }

    /// A branch where the accumulator holds the word at `offset`, which need not be loaded again.
    pub fn branch_on(
        &mut self,
        offset: u32,
        test: Test,
        constant: u32,
        yes: NodeId,
        no: NodeId,
    ) -> NodeId {
        let skip = |id: NodeId| match self.nodes[id.0] {
            Node::Load(loaded, next) if loaded == offset => next,
            _ => id,
        };
        let (yes, no) = (skip(yes), skip(no));
        self.add(Node::Branch(test, constant, yes, no))
    }

    /// The program that starts at `root`, unless it is longer than `most`.
    pub fn layout(&self, root: NodeId, most: usize) -> Option<Vec<libc::sock_filter>> {
        let mut placed = Placed {
            reversed: Vec::with_capacity(self.nodes.len()),
            at: vec![0; self.nodes.len()],
        };
        for id in self.children_first(root) {
            match self.nodes[id.0] {
                Node::Return(value) => placed.push(libc::BPF_RET | libc::BPF_K, 0, 0, value),
                Node::Load(offset, next) => {
                    placed.adjoin(self, next);
                    placed.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
                }
                Node::And(mask, next) => {
                    placed.adjoin(self, next);
                    placed.push(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask);
                }
                Node::Branch(test, constant, yes, no) => {
                    // Bringing the second near moves the first one away by one.
                    placed.bring_near(self, yes, 1);
                    placed.bring_near(self, no, 0);
                    let (jt, jf) = (placed.distance(yes) as u8, placed.distance(no) as u8);
                    placed.push(libc::BPF_JMP | test.code() | libc::BPF_K, jt, jf, constant);
                }
            }
            placed.at[id.0] = placed.reversed.len() - 1;
            if placed.reversed.len() > most {
                return None;
            }
        }
        placed.reversed.reverse();
        Some(placed.reversed)
    }

    /// Every node from `root` on, each after all that it leads to. A loop and not a recursion: chains of conditions
    /// are as long as a profile makes them.
    fn children_first(&self, root: NodeId) -> Vec<NodeId> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.nodes.len()];
        let mut stack = vec![(root, false)];
        while let Some((id, children_done)) = stack.pop() {
            if children_done {
                order.push(id);
                continue;
            }
            if std::mem::replace(&mut seen[id.0], true) {
                continue;
            }
            stack.push((id, true));
            match self.nodes[id.0] {
                Node::Return(_) => {}
                Node::Load(_, next) | Node::And(_, next) => stack.push((next, false)),
                // The last one pushed is placed first, so farthest away: "no" stays close.
                Node::Branch(_, _, yes, no) => stack.extend([(no, false), (yes, false)]),
            }
        }
        order
    }
}

/// Instructions from the end of the program on.
struct Placed {
    reversed: Vec<libc::sock_filter>,
    /// Where each node is, as an index of `reversed`: its nearest copy, or a jump to it. Nobody asks for one before it
    /// is placed.
    at: Vec<usize>,
}

impl Placed {
    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        self.reversed.push(libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        });
    }

    /// How many instructions lie between the next one placed and `node`.
    fn distance(&self, node: NodeId) -> usize {
        self.reversed.len() - 1 - self.at[node.0]
    }

    /// Makes `node` the next instruction.
    fn adjoin(&mut self, graph: &Graph, node: NodeId) {
        if self.distance(node) > 0 {
            self.repeat(graph, node);
        }
    }

    /// Makes `node` reachable by a branch that comes `later` instructions after the next one.
    fn bring_near(&mut self, graph: &Graph, node: NodeId, later: usize) {
        if self.distance(node) + later > usize::from(u8::MAX) {
            self.repeat(graph, node);
        }
    }

    /// Places a copy of `node`, or a jump to it.
    fn repeat(&mut self, graph: &Graph, node: NodeId) {
        match graph.nodes[node.0] {
            Node::Return(value) => self.push(libc::BPF_RET | libc::BPF_K, 0, 0, value),
            _ => {
                let distance = self.distance(node) as u32;
                self.push(libc::BPF_JMP | libc::BPF_JA, 0, 0, distance);
            }
        }
        self.at[node.0] = self.reversed.len() - 1;
    }
}
