// io.Copy at both ends: filecopy receive|send ADDRESS FILE
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func fail(err error) {
	if err != nil {
		fmt.Println("filecopy:", err)
		os.Exit(1)
	}
}

func main() {
	address, path := os.Args[2], os.Args[3]
	if os.Args[1] == "receive" {
		listener, err := net.Listen("tcp", address)
		fail(err)
		conn, err := listener.Accept()
		fail(err)
		file, err := os.Create(path)
		fail(err)
		_, err = io.Copy(file, conn)
		fail(err)
		fail(file.Close())
		return
	}
	file, err := os.Open(path)
	fail(err)
	conn, err := net.Dial("tcp", address)
	fail(err)
	_, err = io.Copy(conn, file)
	fail(err)
	fail(conn.Close())
}
