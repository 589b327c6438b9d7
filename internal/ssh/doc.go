// Package ssh reaches files on other hosts over the system's ssh, with its sftp
// subsystem at the other end. The operator's keys, agent, configuration and
// known hosts count, and so do jump hosts; nothing is ever asked.
//
// A Session is one connection. Source reads a server's data directory over
// several of them: it is what a backup of another host reads its blocks from.
package ssh
