#!/bin/sh
# ZooKeeper's own client.
exec java -Xmx64m -cp /usr/share/java/zookeeper.jar:/usr/share/java/commons-cli.jar \
  org.apache.zookeeper.ZooKeeperMain "$@"
