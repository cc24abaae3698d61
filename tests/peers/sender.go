// The tutorial's sender: sender ADDRESS FILE
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func sendFile(path string, conn net.Conn) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return err
		}
	}
}

func main() {
	path := os.Args[2]
	info, err := os.Stat(path)
	if err != nil {
		fmt.Println("os.Stat err =", err)
		os.Exit(1)
	}
	conn, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		fmt.Println("net.Dial err =", err)
		os.Exit(1)
	}
	defer conn.Close()
	if _, err = conn.Write([]byte(info.Name())); err != nil {
		fmt.Println("conn.Write err =", err)
		os.Exit(1)
	}
	buf := make([]byte, 1024)
	n, err := conn.Read(buf)
	if err != nil {
		fmt.Println("conn.Read err =", err)
		os.Exit(1)
	}
	if "ok" != string(buf[:n]) {
		fmt.Printf("answer: %s", buf[:n])
		os.Exit(2)
	}
	if err := sendFile(path, conn); err != nil {
		fmt.Println("sendFile err =", err)
		os.Exit(1)
	}
}
