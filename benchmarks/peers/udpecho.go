// The UDP server of the tutorial, answering with what it read: resolve, listen,
// read with the sender's address, write back.  Prints its port.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	address, err := net.ResolveUDPAddr("udp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	connection, err := net.ListenUDP("udp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(connection.LocalAddr().(*net.UDPAddr).Port)
	buffer := make([]byte, 4096)
	for {
		n, sender, err := connection.ReadFromUDP(buffer)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		if _, err := connection.WriteToUDP(buffer[:n], sender); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}
