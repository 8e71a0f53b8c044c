use super::*;

use crate::socket::tcp::Socket;

impl InterfaceInner {
    pub(crate) fn process_tcp<'frame>(
        &mut self,
        sockets: &mut SocketSet,
        handled_by_raw_socket: bool,
        ip_repr: IpRepr,
        ip_payload: &'frame [u8],
    ) -> Option<Packet<'frame>> {
        let (src_addr, dst_addr) = (ip_repr.src_addr(), ip_repr.dst_addr());

        // Per RFC 1122 §3.2.1.3, the unspecified address must never appear as a source
        // or destination in any IP datagram. Drop such TCP segments early to avoid
        // creating sockets with unspecified peers (which would later panic on egress).
        // This is not done at the iface level because it might be useful with
        // UDP or raw sockets, but it's definitely not useful for TCP.
        if src_addr.is_unspecified() || dst_addr.is_unspecified() {
            self.drops.malformed += 1;
            return None;
        }

        let tcp_packet = check!(self, TcpPacket::new_checked(ip_payload));
        let tcp_repr = check!(
            self,
            TcpRepr::parse(&tcp_packet, &src_addr, &dst_addr, &self.caps.checksum)
        );

        // A connection comes before a socket that listens on its port, whatever their order in the set: a SYN that
        // is sent again belongs to the connection that it opened.
        let listening = |socket: &Socket| socket.state() == crate::socket::tcp::State::Listen;
        let find = |cx: &mut Self, sockets: &SocketSet, listener: bool| {
            sockets.items().find_map(|item| {
                Socket::downcast(&item.socket)
                    .is_some_and(|socket| {
                        listening(socket) == listener && socket.accepts(cx, &ip_repr, &tcp_repr)
                    })
                    .then_some(item.meta.handle)
            })
        };
        let connection = find(self, sockets, false);
        // One in TIME-WAIT gives way to the next between the same endpoints, if there is somebody to open it.
        let gives_way =
            connection.is_some_and(|handle| sockets.get::<Socket>(handle).gives_way_to(&tcp_repr));
        let listener = match connection.is_none() || gives_way {
            true => find(self, sockets, true),
            false => None,
        };
        if let Some(handle) = listener.or(connection) {
            let socket = sockets.get_mut::<Socket>(handle);
            let reply = socket.process(self, &ip_repr, &tcp_repr);
            let opened = !listening(socket);
            if let (Some(_), Some(old), true) = (listener, connection, opened) {
                let end = sockets.get_mut::<Socket>(old).give_way();
                sockets.get_mut::<Socket>(handle).begin_after(self, end);
            }
            return reply.map(|(ip, tcp)| Packet::new(ip, IpPayload::Tcp(tcp)));
        }

        if !handled_by_raw_socket {
            self.drops.unheard += 1;
        }
        if tcp_repr.control == TcpControl::Rst
            || ip_repr.dst_addr().is_unspecified()
            || ip_repr.src_addr().is_unspecified()
            || handled_by_raw_socket
        {
            // Never reply to a TCP RST packet with another TCP RST packet.
            // Never send a TCP RST packet with unspecified addresses.
            // Never send a TCP RST when packet has been handled by raw socket.
            None
        } else {
            // The packet wasn't handled by a socket, send a TCP RST packet.
            let (ip, tcp) = tcp::Socket::rst_reply(&ip_repr, &tcp_repr);
            Some(Packet::new(ip, IpPayload::Tcp(tcp)))
        }
    }
}
