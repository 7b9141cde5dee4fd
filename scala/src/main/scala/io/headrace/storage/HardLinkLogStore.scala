package io.headrace.storage

import java.io.{BufferedWriter, FileNotFoundException, IOException, OutputStreamWriter}
import java.nio.channels.{Channels, FileChannel}
import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.{FileAlreadyExistsException, FileSystemException, Files, NoSuchFileException, Path}
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardOpenOption.{CREATE, CREATE_NEW, READ, WRITE}
import java.util.{Iterator => JIterator, UUID}

import io.delta.storage.HadoopFileSystemLogStore
import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{Path => HadoopPath}

/**
 * Delta's LogStore for `file:`: exactly one of any number of processes commits a version.
 *
 * Delta's own store checks that a version is absent and then renames onto it; on a local file system two writers can
 * pass the check and both be told "committed". Here a commit is written to a temporary file, synced, and given its name
 * by a hard link, which the file system itself refuses where the name exists. A reader sees a commit whole or not at
 * all; a crash leaves at most a temporary file whose name starts with a dot, which listing from a version passes over.
 *
 * Where the file system has no hard links (FAT, some FUSE mounts), the temporary file is renamed while an exclusive
 * lock on `.commit.lock` is held: as atomic for readers, exclusive among all who use this class, and released by the
 * operating system when its holder dies.
 */
class HardLinkLogStore(conf: Configuration) extends HadoopFileSystemLogStore(conf) {

  /**
   * Write `actions`, one a line.
   *
   * @throws FileAlreadyExistsException the version is committed and `overwrite` is false: the caller lost the race
   */
  override def write(
      path: HadoopPath,
      actions: JIterator[String],
      overwrite: java.lang.Boolean,
      hadoopConf: Configuration
  ): Unit = {
    val target = localPath(path)
    if (!overwrite && Files.exists(target)) throw new FileAlreadyExistsException(target.toString)
    val temporary = target.resolveSibling(s".${target.getFileName}.${UUID.randomUUID()}.tmp")
    try {
      writeSynced(temporary, actions)
      // A checksum left by Hadoop's own local file system would belong to other bytes.
      Files.deleteIfExists(target.resolveSibling(s".${target.getFileName}.crc"))
      if (overwrite) Files.move(temporary, target, ATOMIC_MOVE) else publish(temporary, target)
      syncFolder(target.getParent)
    } catch {
      case missing: NoSuchFileException if !Files.isDirectory(target.getParent) =>
        throw new FileNotFoundException(s"No such file or directory: ${missing.getFile}")
    } finally Files.deleteIfExists(temporary)
  }

  /** True: Delta asks this before it writes a checkpoint by itself, which is then renamed into place when complete. */
  override def isPartialWriteVisible(path: HadoopPath, hadoopConf: Configuration): java.lang.Boolean = true

  /** Give `temporary` its final name by a hard link; tests override it to play a file system without links. */
  protected def link(temporary: Path, target: Path): Unit = Files.createLink(target, temporary)

  private def publish(temporary: Path, target: Path): Unit =
    try link(temporary, target)
    catch {
      // Over a network a link can succeed and its answer be lost: the retried call then says "exists".
      case exists: FileAlreadyExistsException => if (!isSame(temporary, target)) throw exists
      case _: UnsupportedOperationException   => renameUnderLock(temporary, target)
      case fault: FileSystemException if !fault.isInstanceOf[NoSuchFileException] =>
        if (!isSame(temporary, target)) renameUnderLock(temporary, target)
    }

  private def isSame(temporary: Path, target: Path): Boolean =
    Files.exists(target) && Files.isSameFile(temporary, target)

  private def renameUnderLock(temporary: Path, target: Path): Unit =
    // A process holds a file lock as a whole: its own threads are kept apart by the monitor.
    HardLinkLogStore.monitor.synchronized {
      val channel = FileChannel.open(target.resolveSibling(".commit.lock"), CREATE, WRITE)
      try {
        channel.lock()
        if (Files.exists(target)) throw new FileAlreadyExistsException(target.toString)
        Files.move(temporary, target, ATOMIC_MOVE)
      } finally channel.close()
    }

  private def writeSynced(file: Path, actions: JIterator[String]): Unit = {
    val channel = FileChannel.open(file, CREATE_NEW, WRITE)
    try {
      val out = new BufferedWriter(new OutputStreamWriter(Channels.newOutputStream(channel), UTF_8))
      while (actions.hasNext) {
        out.write(actions.next())
        out.write('\n')
      }
      out.flush()
      channel.force(true)
    } finally channel.close()
  }

  /** Make the new name itself durable. Folders cannot be opened everywhere: there the commit stands without it. */
  private def syncFolder(folder: Path): Unit =
    HardLinkLogStore.openFolder(folder).foreach { channel =>
      try channel.force(true)
      finally channel.close()
    }

  private def localPath(path: HadoopPath): Path = {
    val uri = path.toUri
    require(uri.getScheme == null || uri.getScheme == "file", s"HardLinkLogStore serves file: only, not $path")
    java.nio.file.Paths.get(uri.getPath)
  }
}

private object HardLinkLogStore {
  val monitor = new Object

  def openFolder(folder: Path): Option[FileChannel] =
    try Some(FileChannel.open(folder, READ))
    catch { case _: IOException => None }
}
